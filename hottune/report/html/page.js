"use strict";
// The page is complete without this: it adds sorting, copying, and opens the data for print.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column], up));
      body.append(...rows);
    });
  });
}

function compare(a, b, up) {
  const [x, y] = [a, b].map((cell) => cell.dataset.sort);
  if (x !== undefined && y !== undefined) return up ? x - y : y - x;
  // What has no number stays last, whichever way the column is sorted.
  if (x !== undefined || y !== undefined) return x === undefined ? 1 : -1;
  const order = a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
  return up ? order : -order;
}

for (const block of document.querySelectorAll("pre.command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(block.textContent);
      button.textContent = "Copied";
    } catch {
      // Some browsers give a page from disk no clipboard: the command is selected, ready for Ctrl+C.
      getSelection().selectAllChildren(block);
      button.textContent = "Selected: copy with Ctrl+C";
    }
  });
  block.after(button);
}

addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    part.open = true;
    part.dataset.printed = "";
  }
});
addEventListener("afterprint", () => {
  for (const part of document.querySelectorAll("details[data-printed]")) {
    part.open = false;
    delete part.dataset.printed;
  }
});
