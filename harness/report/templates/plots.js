// Draws the figures when they come into view, in the colours of the page's scheme, labelled at the line's end where there is room.
"use strict";
(() => {
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "triangle-down", "pentagon", "star"];
  const DASHES = ["solid", "solid", "solid", "solid", "dash", "dash", "dash", "dash"];
  const LABEL_HEIGHT = 15;
  const config = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function styled(trace) {
    const made = structuredClone(trace);
    const { role, slot } = trace.meta;
    const arm = colour(role === "limit" ? "--soft" : `--arm-${slot}`);
    if (role === "band") return { ...made, fillcolor: `${arm}2b`, line: { width: 0 } };
    if (role === "limit") return { ...made, line: { color: arm, width: 1.5, dash: "dash" }, hoverlabel: { bgcolor: colour("--card") } };
    return {
      ...made, cliponaxis: Boolean(made.error_y), error_y: made.error_y && { ...made.error_y, color: arm }, line: { color: arm, width: 2, dash: DASHES[slot] },
      marker: { color: arm, size: 7, symbol: SYMBOLS[slot] }, hoverlabel: { bgcolor: colour("--card"), bordercolor: arm, font: { color: colour("--ink") } },
    };
  }

  const CHANGES = { "change-worse": "--refuted", "change-better": "--supported", "change-changed": "--inconclusive", "change-machine": "--soft", "change-peer": "--soft", cut: "--soft" };

  // Change points and cuts of a history; those that are not ours are dotted, for the colour alone does not tell.
  function boundary(item) {
    const ink = colour(CHANGES[item.name]);
    const dash = item.name === "cut" ? "longdash" : ["change-machine", "change-peer"].includes(item.name) ? "dot" : "solid";
    return { ...item, layer: "below", line: { color: ink, width: 1.5, dash }, label: { ...item.label, font: { size: 11, color: ink } } };
  }

  function shape(item) {
    if (item.name in CHANGES) return boundary(item);
    const limit = item.name === "limit";
    const equal = item.name === "equal";
    return {
      ...item, layer: "below",
      line: { color: colour(limit || equal ? "--soft" : "--line"), width: limit ? 0 : equal ? 1.5 : 1, dash: equal ? "solid" : "dot" },
      fillcolor: limit ? `${colour("--soft")}33` : undefined,
      label: { ...item.label, font: { size: 11, color: colour("--soft") } },
    };
  }

  // Names at the right end of their lines, pushed apart where they would overlap.
  function endLabels(view, height) {
    const axis = view.layout.yaxis;
    const place = (value) => axis.type === "log" ? Math.log10(value) : value;
    const [low, high] = axis.range;
    const labels = view.data.filter((trace) => trace.meta.role !== "band").map((trace) => {
      const last = trace.y.findLastIndex((value) => value !== null);
      if (last < 0) return null;
      const share = Math.min(1, Math.max(0, (place(trace.y[last]) - low) / (high - low)));
      return { trace, at: share * height, want: share * height };
    }).filter(Boolean).sort((a, b) => a.at - b.at);
    for (let pass = 0; pass < 60; pass += 1) {
      for (let i = 1; i < labels.length; i += 1) {
        const lack = LABEL_HEIGHT - (labels[i].at - labels[i - 1].at);
        if (lack > 0) { labels[i].at += lack / 2; labels[i - 1].at -= lack / 2; }
      }
    }
    return labels.map(({ trace, at }) => ({
      xref: "paper", x: 1, xanchor: "left", xshift: 8, yref: "paper", y: at / height, yanchor: "middle", showarrow: false, text: trace.name,
      font: { size: 12, color: colour(trace.meta.role === "limit" ? "--soft" : `--arm-${trace.meta.slot}`) },
    }));
  }

  function thinned(axis, width) {
    if (!axis.ticktext) return {};
    const every = Math.ceil(axis.ticktext.length * (axis.room || 44) / width);
    const keep = (_, index) => (axis.ticktext.length - 1 - index) % every === 0;
    return { tickvals: axis.tickvals.filter(keep), ticktext: axis.ticktext.filter(keep) };
  }

  const labelled = (node) => node.clientWidth >= 420;

  function layoutFor(view, node) {
    const wide = labelled(node);
    const names = view.data.filter((trace) => trace.name).map((trace) => trace.name.length);
    const right = wide ? Math.min(190, 20 + 7 * Math.max(4, ...names)) : 12;
    const margin = { l: 72, r: right, t: 18, b: 44, pad: 0 };
    const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, ticks: "", color: colour("--soft"), fixedrange: true, automargin: false, tickangle: 0 };
    const width = node.clientWidth - margin.l - margin.r;
    const title = (text) => ({ text, font: { size: 12, color: colour("--soft") }, standoff: 8 });
    return {
      xaxis: { ...axis, ...view.layout.xaxis, ...thinned(view.layout.xaxis, width), showgrid: false, showline: true, title: title(view.layout.xaxis.title.text) },
      yaxis: { ...axis, ...view.layout.yaxis, title: title(view.layout.yaxis.title.text) },
      shapes: (view.layout.shapes || []).map(shape),
      annotations: wide ? endLabels(view, node.clientHeight - margin.t - margin.b) : [],
      margin, showlegend: false, dragmode: false, hovermode: "closest", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--ink") },
    };
  }

  function draw(panel) {
    const view = panel.views.find((item) => item.name === panel.group.view) || panel.views[0];
    Plotly.react(panel.node, view.data.map(styled), layoutFor(view, panel.node), config);
    panel.node.dataset.view = view.name;
    panel.drawn = true;
    panel.node.closest(".figure-group").classList.toggle("labelled", labelled(panel.node));
  }

  const panels = [];
  for (const node of document.querySelectorAll(".figure-group")) {
    const group = { view: null };
    const own = [...node.querySelectorAll(".plot-panel")].map((item) => {
      const place = item.querySelector(".plot");
      place.replaceChildren();
      return { node: place, views: JSON.parse(item.querySelector(".spec").textContent), group, drawn: false };
    });
    panels.push(...own);
    const names = [...new Set(own.flatMap((panel) => panel.views.map((view) => view.name)))];
    const bar = node.querySelector(".views");
    group.view = names[0];
    if (names.length < 2) continue;
    bar.hidden = false;
    const press = () => { for (const button of bar.children) button.setAttribute("aria-pressed", String(button.textContent === group.view)); };
    for (const name of names) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => {
        group.view = name;
        press();
        for (const panel of own) if (panel.drawn) draw(panel);
      });
      bar.append(button);
    }
    press();
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const panel = panels.find((item) => item.node === entry.target);
      if (entry.isIntersecting && !panel.drawn) draw(panel);
    }
  }, { rootMargin: "600px" });
  for (const panel of panels) seen.observe(panel.node);
  const again = () => { for (const panel of panels) if (panel.drawn) draw(panel); };
  document.addEventListener("litmus:scheme", again);
  let pending = 0;
  addEventListener("resize", () => { clearTimeout(pending); pending = setTimeout(again, 150); });
  addEventListener("beforeprint", () => { for (const panel of panels) draw(panel); });
})();
