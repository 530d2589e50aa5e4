// The colour scheme and copy buttons. Everything on a page can be read without this file.
"use strict";
(() => {
  const schemes = ["auto", "light", "dark"];
  const root = document.documentElement;
  const stored = () => { try { return localStorage.getItem("litmus-scheme"); } catch { return null; } };
  const keep = (name) => { try { localStorage.setItem("litmus-scheme", name); } catch { /* private windows have none */ } };

  function apply(name) {
    if (name === "auto") root.removeAttribute("data-scheme");
    else root.dataset.scheme = name;
    document.dispatchEvent(new Event("litmus:scheme"));
  }
  let scheme = schemes.includes(stored()) ? stored() : "auto";
  apply(scheme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => apply(scheme));

  // Paper is white: figures take the light scheme's colours before they are printed.
  addEventListener("beforeprint", () => apply("light"));
  addEventListener("afterprint", () => apply(scheme));

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.querySelector(".scheme");
    button.hidden = false;
    const label = () => { button.textContent = `Scheme: ${scheme}`; };
    label();
    button.addEventListener("click", () => {
      scheme = schemes[(schemes.indexOf(scheme) + 1) % schemes.length];
      keep(scheme);
      apply(scheme);
      label();
    });
    for (const copy of document.querySelectorAll(".copy")) {
      copy.hidden = !navigator.clipboard;
      copy.addEventListener("click", async () => {
        await navigator.clipboard.writeText(copy.previousElementSibling.textContent);
        copy.textContent = "Copied";
        setTimeout(() => { copy.textContent = "Copy"; }, 1500);
      });
    }
    // A target inside a fold, and every fold on paper, must be open to be seen.
    const openTarget = () => {
      const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
      for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    };
    addEventListener("hashchange", openTarget);
    openTarget();
  });
})();
