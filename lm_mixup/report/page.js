"use strict";
(() => {
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = () => ({
    gridcolor: css("--line"), linecolor: css("--line"), zerolinecolor: css("--line"),
    automargin: true, ticks: "", exponentformat: "e", tickfont: { size: 11 }, title: { font: { size: 11 }, standoff: 8 },
  });
  const template = () => ({
    layout: {
      font: { family: css("--sans"), size: 12, color: css("--soft") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: { ...axis(), showgrid: false }, yaxis: axis(),
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") } },
    },
  });
  const draw = () => {
    for (const holder of document.querySelectorAll(".plot")) {
      const figure = JSON.parse(document.getElementById("data-" + holder.id).textContent);
      figure.layout.template = template();
      Plotly.react(holder, figure.data, figure.layout, { displayModeBar: false, responsive: true });
    }
  };
  if (window.Plotly) {
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }
})();
