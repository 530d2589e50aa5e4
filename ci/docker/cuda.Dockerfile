# As cpu.Dockerfile, for a machine with an NVIDIA GPU and its container toolkit: torch's own CUDA libraries come with its
# wheels, the base brings the compiler of the CUDA kernels. Ubuntu 24.04 has Python 3.12.
ARG BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04
FROM ${BASE} AS build
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
COPY wheels /wheels
COPY requirements.txt /requirements.txt
RUN python3 -m venv /litmus-image/env \
 && /litmus-image/env/bin/python -m pip install --no-cache-dir --no-index -f /wheels --requirement /requirements.txt

FROM ${BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 g++ && rm -rf /var/lib/apt/lists/*
COPY --from=build /litmus-image/env /litmus-image/env
ENV PATH=/litmus-image/env/bin:/usr/local/cuda/bin:/usr/local/bin:/usr/bin:/bin
USER 65534:65534
CMD ["python", "-m", "harness.run.engine.inside"]
