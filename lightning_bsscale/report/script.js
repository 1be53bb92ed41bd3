"use strict";
// Shows the row of a figure's table that is nearest to the pointer, or that the arrow keys chose.
(function () {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const svg = "http://www.w3.org/2000/svg";
  for (const [name, axes] of Object.entries(data)) {
    const figure = document.getElementById(name + "-figure");
    const head = [...figure.querySelectorAll("thead th")].map((cell) => cell.textContent);
    const rows = [...figure.querySelectorAll("tbody tr")];
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    tip.setAttribute("role", "status");
    figure.append(tip);
    for (const [axis, places] of Object.entries(axes)) {
      const picture = document.getElementById(name + "-" + axis);
      const cursor = document.createElementNS(svg, "line");
      cursor.setAttribute("class", "cursor");
      cursor.setAttribute("y1", "12");
      cursor.setAttribute("y2", "312");
      cursor.setAttribute("visibility", "hidden");
      picture.append(cursor);
      let at = 0;
      const show = (index) => {
        at = Math.max(0, Math.min(places.length - 1, index));
        const place = places[at];
        cursor.setAttribute("x1", place);
        cursor.setAttribute("x2", place);
        cursor.setAttribute("visibility", "visible");
        tip.replaceChildren(
          ...[...rows[at].cells].map((cell, column) => {
            const line = document.createElement("div");
            const key = document.createElement("span");
            const value = document.createElement("strong");
            key.textContent = head[column];
            value.textContent = cell.textContent;
            line.append(key, value);
            return line;
          }),
        );
        tip.hidden = false;
        const box = picture.getBoundingClientRect();
        const outer = figure.getBoundingClientRect();
        const across = (place / 720) * box.width + box.left - outer.left;
        const room = outer.width - tip.offsetWidth;
        const beside = across + 14 > room ? across - tip.offsetWidth - 14 : across + 14;
        tip.style.left = Math.max(0, Math.min(room, beside)) + "px";
        tip.style.top = box.top - outer.top + 8 + "px";
      };
      const hide = () => {
        tip.hidden = true;
        cursor.setAttribute("visibility", "hidden");
      };
      picture.addEventListener("pointermove", (event) => {
        const box = picture.getBoundingClientRect();
        const across = ((event.clientX - box.left) / box.width) * 720;
        let best = 0;
        places.forEach((place, index) => {
          if (Math.abs(place - across) < Math.abs(places[best] - across)) best = index;
        });
        show(best);
      });
      picture.addEventListener("pointerleave", hide);
      picture.addEventListener("blur", hide);
      picture.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
        if (event.key === "Escape") hide();
        if (step === undefined) return;
        event.preventDefault();
        show(tip.hidden ? (step < 0 ? 0 : step > 1e8 ? 1e9 : at) : at + step);
      });
    }
  }
})();
