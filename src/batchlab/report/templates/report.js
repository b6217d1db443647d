"use strict";
// Draws the figures one after the other, so that the page can be read meanwhile.
(async () => {
  const options = {
    actions: false,
    renderer: "svg",
    defaultStyle: false,
    tooltip: { theme: "page", disableDefaultStyle: true },
  };

  const legend = (figure, view) => {
    const buttons = [...figure.querySelectorAll(".legend button")];
    for (const button of buttons) {
      button.addEventListener("click", () => {
        const pressed = button.getAttribute("aria-pressed") === "true";
        button.setAttribute("aria-pressed", String(!pressed));
        const picked = buttons.filter((b) => b.getAttribute("aria-pressed") === "true");
        view.signal("picked", picked.map((b) => b.dataset.series)).runAsync();
      });
    }
  };

  const figures = [...document.querySelectorAll("figure[data-chart]")];
  for (const figure of figures) {
    const place = figure.querySelector(".chart");
    try {
      const spec = JSON.parse(figure.querySelector("script").textContent);
      const { view } = await window.vegaEmbed(place, spec, options);
      // Vega reports what goes wrong with the data to its log only.
      if (!place.querySelector("svg g[class*='mark-'] > *")) throw new Error("no mark was drawn");
      legend(figure, view);
    } catch (error) {
      console.error(`figure ${figure.dataset.chart}:`, error);
      place.classList.add("failed");
      place.removeAttribute("role");
      place.textContent = `This figure could not be drawn: ${error.message}`;
    }
    await new Promise((done) => setTimeout(done));
  }
  document.body.dataset.drawn = String(figures.length);
})();

// The bar marks the section on the screen.
(() => {
  const links = new Map();
  for (const link of document.querySelectorAll(".bar a")) links.set(link.hash.slice(1), link);
  const watch = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(target.id).setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-20% 0px -75% 0px" },
  );
  for (const id of links.keys()) watch.observe(document.getElementById(id));
})();

// Not every browser unfolds what a link leads into.
const unfold = () => {
  const target = document.getElementById(location.hash.slice(1));
  const details = target?.closest("details");
  if (!details || details.open) return;
  details.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();

// Paper cannot be unfolded.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
