"use strict";
(() => {
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const byId = (id) => document.getElementById(id);

  // Charts: colours of text, grid and background are the page's.
  const axis = () => ({
    gridcolor: css("--line"), linecolor: css("--line"), zerolinecolor: css("--line"),
    automargin: true, ticks: "", exponentformat: "e", tickfont: { size: 11 }, title: { font: { size: 11 }, standoff: 8 },
  });
  const template = () => ({
    layout: {
      font: { family: css("--sans"), size: 12, color: css("--soft") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: { ...axis(), showgrid: false }, yaxis: axis(),
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") }, align: "left" },
      newselection: { line: { color: css("--accent") } }, activeselection: { fillcolor: css("--accent") },
    },
  });
  const draw = () => {
    for (const holder of document.querySelectorAll(".plot")) {
      const figure = JSON.parse(byId("data-" + holder.id).textContent);
      figure.layout.template = template();
      Plotly.react(holder, figure.data, figure.layout, { displayModeBar: false, responsive: true });
    }
  };

  // Examples: filters, search and paging hide articles that are on the page already.
  const PER_PAGE = 5;
  const form = byId("filters");
  const articles = form ? [...byId("example-list").children] : [];
  const texts = articles.map((article) => article.textContent.toLowerCase());
  let page = 0;
  let boxed = null; // clusters inside the box that was drawn on the map

  const matches = (article, text) => {
    for (const select of form.querySelectorAll("select")) {
      if (select.value && article.dataset[select.name] !== select.value) return false;
    }
    if (boxed && !boxed.has(article.dataset.cluster)) return false;
    return form.search.value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  };
  const show = () => {
    const found = articles.filter((article, place) => matches(article, texts[place]));
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(page, pages - 1);
    const onPage = new Set(found.slice(page * PER_PAGE, (page + 1) * PER_PAGE));
    for (const article of articles) article.hidden = !onPage.has(article);
    byId("shown").textContent = `${found.length} of ${articles.length} examples, page ${page + 1} of ${pages}`;
    byId("earlier").disabled = page === 0;
    byId("later").disabled = page === pages - 1;
    byId("map-clear").hidden = !boxed;
  };
  const turn = (by) => { page += by; show(); byId("examples").scrollIntoView(); };
  if (form) {
    form.hidden = byId("pager").hidden = false;
    form.addEventListener("input", () => { page = 0; show(); });
    form.addEventListener("submit", (event) => event.preventDefault());
    byId("earlier").addEventListener("click", () => turn(-1));
    byId("later").addEventListener("click", () => turn(1));
    byId("map-clear").addEventListener("click", () => { boxed = null; show(); });
    show();
  }
  const followMap = () => {
    const map = byId("map-0");
    if (!map || !form) return;
    map.on("plotly_selected", (event) => {
      const names = (event?.points ?? []).map((point) => point.customdata[0]).filter(Boolean);
      boxed = event && names.length ? new Set(names) : null;
      page = 0;
      show();
      if (boxed) byId("examples").scrollIntoView();
    });
  };

  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(byId(button.dataset.copy).textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  if (window.Plotly) {
    draw();
    followMap();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }
})();
