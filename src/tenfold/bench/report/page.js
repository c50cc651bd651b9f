"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paper = matchMedia("print");
  const {panels, themes} = JSON.parse(document.getElementById("panels").textContent);
  const PRINTED = 660;  // CSS pixels: fits the text of A4 and of Letter
  const PRINTED_HEIGHT = 360;  // two on a page

  function painted(figure, theme) {
    return JSON.parse(JSON.stringify(figure), (key, value) => (/color$/.test(key) && theme[value]) || value);
  }

  // Below the plot, where it takes no width; its rows need room that the plot must not lose.
  function legendRows(figure, width) {
    const shown = figure.data.filter((trace) => trace.name && trace.showlegend !== false);
    const names = shown.map((trace) => trace.name.split("<br>"));
    const column = 60 + 7.5 * Math.max(0, ...names.flat().map((line) => line.length));
    const columns = Math.max(1, Math.floor((width - 66) / column));
    let rows = 0;
    for (let i = 0; i < names.length; i += columns) {
      rows += Math.max(...names.slice(i, i + columns).map((lines) => lines.length));
    }
    return names.length > 1 ? rows : 0;
  }

  function draw(panel, printing) {
    const place = document.getElementById("figure-" + panel.id);
    const plot = place.querySelector(".plot");
    const picked = panel.choices.map((choice, position) => {
      const select = place.querySelector(`select[data-position="${position}"]`);
      return select ? select.value : 0;
    });
    const theme = themes[dark.matches && !printing ? "dark" : "light"];
    const figure = painted(panel.figures[picked.join(",")], theme);
    const least = (figure.layout.meta || {}).least || 0;
    const width = printing ? PRINTED : Math.max(plot.parentElement.clientWidth, least);
    figure.layout.width = width;
    if (printing && figure.data[0].type !== "heatmap") figure.layout.height = PRINTED_HEIGHT;
    figure.layout.height += 21 * legendRows(figure, width);
    figure.layout.dragmode = false;
    plot.style.width = width + "px";
    const narrow = width < 560;
    const options = { displaylogo: false, displayModeBar: narrow || printing ? false : "hover", scrollZoom: false };
    options.modeBarButtons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];  // none that sends anything anywhere
    return Plotly.react(plot, figure.data, figure.layout, options);
  }

  function drawAll(printing) {
    panels.forEach((panel) => draw(panel, printing));
  }

  panels.forEach((panel) => {
    document.querySelectorAll(`#figure-${panel.id} select`).forEach((select) => {
      select.addEventListener("change", () => draw(panel, false));
    });
  });
  let shown = 0;
  addEventListener("resize", () => {
    if (shown === innerWidth || paper.matches) return;
    shown = innerWidth;
    drawAll(false);
  });
  dark.addEventListener("change", () => drawAll(paper.matches));
  addEventListener("beforeprint", () => drawAll(true));
  addEventListener("afterprint", () => drawAll(false));
  shown = innerWidth;
  drawAll(false);
})();
