# The libraries that suites run with, and nothing of the project: that is mounted. Built by ci/docker/image, which lays
# wheels/ and requirements.txt beside this file, so that nothing is fetched while building.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS build
COPY wheels /wheels
COPY requirements.txt /requirements.txt
RUN python3 -m venv /litmus-image/env \
 && /litmus-image/env/bin/python -m pip install --no-cache-dir --no-index -f /wheels --requirement /requirements.txt

FROM ${BASE}
COPY --from=build /litmus-image/env /litmus-image/env
ENV PATH=/litmus-image/env/bin:/usr/local/bin:/usr/bin:/bin
USER 65534:65534
CMD ["python", "-m", "harness.run.engine.inside"]
