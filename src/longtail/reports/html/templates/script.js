"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const MAX_ROWS = 50;

  // ---- tables that sort and filter ----

  for (const table of all("table.sortable")) {
    const body = table.tBodies[0];
    const headers = all("thead th", table);
    const groupColumn = headers.findIndex((header) => header.dataset.column === "group");
    const section = table.closest("section");
    const control = (name) => section.querySelector(`[data-filter="${name}"]`);
    const [text, group, count, more] = ["text", "group", "count", "more"].map(control);
    let rows = [...body.rows];
    let showsAll = false;

    const values = new Map(rows.map((row) => [row, [...row.cells].map((cell) => {
      const content = cell.textContent.trim();
      const number = parseFloat(content.replace(/[,<>\s]/g, "").replace("−", "-"));
      return [content, content === "" || content === "n/a" ? null : number];
    })]));

    const show = () => {
      const wanted = text.value.trim().toLocaleLowerCase();
      let found = 0;
      for (const row of rows) {
        const cells = values.get(row);
        const matches = cells[0][0].toLocaleLowerCase().includes(wanted) && (!group.value || cells[groupColumn][0] === group.value);
        found += matches;
        row.hidden = !matches || (!showsAll && found > MAX_ROWS);
      }
      const shown = showsAll ? found : Math.min(found, MAX_ROWS);
      count.textContent = `${shown.toLocaleString("en")} of ${found.toLocaleString("en")} classes shown`;
      more.parentElement.hidden = found <= MAX_ROWS;
      more.textContent = showsAll ? `Show the first ${MAX_ROWS}` : `Show all ${found.toLocaleString("en")}`;
    };

    const sort = (column, direction) => {
      const isNumber = headers[column].classList.contains("number");
      const sign = direction === "ascending" ? 1 : -1;
      rows.sort((first, second) => {
        const [[textA, numberA], [textB, numberB]] = [values.get(first)[column], values.get(second)[column]];
        if (numberA === null || numberB === null) return (numberA === null) - (numberB === null);
        return sign * (isNumber ? numberA - numberB : textA.localeCompare(textB, "en", { numeric: true }));
      });
      body.append(...rows);
      headers.forEach((header, k) => {
        if (k === column) header.setAttribute("aria-sort", direction);
        else header.removeAttribute("aria-sort");
      });
      show();
    };

    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const first = header.classList.contains("number") ? "descending" : "ascending";
        const other = first === "descending" ? "ascending" : "descending";
        sort(column, header.getAttribute("aria-sort") === first ? other : first);
      });
    });
    text.addEventListener("input", show);
    group.addEventListener("change", show);
    more.addEventListener("click", () => {
      showsAll = !showsAll;
      show();
    });
    for (const element of all(".controls", section)) element.hidden = false;
    show();
  }

  // ---- the slider of the routing budget ----

  const slider = document.getElementById("budget");
  if (slider) {
    const panel = document.getElementById("budget-panel");
    const { positions } = JSON.parse(document.getElementById("budget-data").textContent);
    const marker = panel.querySelector(".marker");
    const parts = all(".stack rect", panel);
    const move = () => {
      const [x, y, texts, shares] = positions[slider.value];
      marker.setAttribute("cx", x);
      marker.setAttribute("cy", y);
      for (const output of all("[data-text]", panel)) output.textContent = texts[output.dataset.text];
      for (const output of all("[data-share]", panel)) output.textContent = shares[output.dataset.share].toFixed(1);
      let left = 0;
      parts.forEach((part, k) => {
        part.setAttribute("x", left);
        part.setAttribute("width", shares[k]);
        left += shares[k];
      });
      slider.setAttribute("aria-valuetext", `${texts[0]} times the cost of one expert, accuracy ${texts[3]} %`);
    };
    slider.addEventListener("input", move);
    document.getElementById("budget-reset").addEventListener("click", () => {
      slider.value = slider.dataset.chosen;
      move();
    });
    panel.querySelector(".slider").hidden = false;
    move();
  }

  // ---- printing shows what is folded ----

  addEventListener("beforeprint", () => {
    for (const element of all("details:not([open])")) {
      element.open = true;
      element.dataset.printed = "";
    }
  });
  addEventListener("afterprint", () => {
    for (const element of all("details[data-printed]")) {
      element.open = false;
      delete element.dataset.printed;
    }
  });
})();
