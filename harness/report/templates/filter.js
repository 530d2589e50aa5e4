// Filters of the index and of the failures. The state lives in the URL's hash, so a view can be linked and restored.
"use strict";
(() => {
  const box = document.getElementById("q");
  const buttons = [...document.querySelectorAll("[data-filter]")];
  const rows = [...document.querySelectorAll(".paper, #failures > .failure")].map((node) => ({
    node, text: node.textContent.toLowerCase().replace(/\s+/g, " "),
  }));

  function read() {
    const found = new URLSearchParams(location.hash.slice(1));
    return { q: found.get("q") || "", family: found.getAll("family"), verdict: found.getAll("verdict"), status: found.getAll("status") };
  }

  function write(state) {
    const kept = new URLSearchParams();
    if (state.q) kept.set("q", state.q);
    for (const kind of ["family", "verdict", "status"]) for (const value of state[kind]) kept.append(kind, value);
    const hash = kept.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function matches(row, state) {
    const { family, verdicts, status } = row.node.dataset;
    const own = (verdicts || "").split("|");
    return (!state.family.length || state.family.includes(family))
      && (!state.verdict.length || state.verdict.some((item) => own.includes(item)))
      && (!state.status.length || state.status.includes(status))
      && state.q.toLowerCase().split(/\s+/).every((word) => row.text.includes(word));
  }

  function show() {
    const state = read();
    let shown = 0;
    for (const row of rows) {
      row.node.hidden = !matches(row, state);
      shown += !row.node.hidden;
    }
    for (const claim of document.querySelectorAll("[data-verdict]")) {
      claim.classList.toggle("dim", state.verdict.length > 0 && !state.verdict.includes(claim.dataset.verdict));
    }
    for (const family of document.querySelectorAll(".family")) family.hidden = !family.querySelector(".paper:not([hidden])");
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(state[button.dataset.filter].includes(button.dataset.value)));
    }
    if (!box) return;
    if (box.value !== state.q) box.value = state.q;
    document.getElementById("found").textContent = shown === rows.length ? `${shown} papers` : `${shown} of ${rows.length} papers`;
    document.getElementById("nothing").hidden = shown > 0 || rows.length === 0;
  }

  for (const button of buttons) {
    button.addEventListener("click", () => {
      const state = read();
      const { filter, value } = button.dataset;
      state[filter] = state[filter].includes(value) ? state[filter].filter((item) => item !== value) : [...state[filter], value];
      write(state);
      show();
    });
  }
  if (box) {
    document.getElementById("tools").hidden = false;
    document.getElementById("tools").addEventListener("submit", (event) => event.preventDefault());
    document.getElementById("reset").addEventListener("click", () => { write({ q: "", family: [], verdict: [], status: [] }); show(); box.focus(); });
    box.addEventListener("input", () => { write({ ...read(), q: box.value }); show(); });
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && document.activeElement !== box && !event.ctrlKey && !event.metaKey) { event.preventDefault(); box.focus(); }
      if (event.key === "Escape" && document.activeElement === box) { write({ ...read(), q: "" }); show(); }
    });
  }
  addEventListener("hashchange", show);
  show();
})();
