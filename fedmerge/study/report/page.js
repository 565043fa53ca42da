(() => {
  "use strict";
  const root = document.documentElement;
  const make = (text, label, act) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    if (label) button.setAttribute("aria-label", label);
    button.addEventListener("click", () => act(button));
    return button;
  };

  // Light, dark, or as the system has it; remembered where the browser lets a file remember.
  const themes = ["auto", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("fedmerge-theme"); } catch { return null; } };
  const wear = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    try { localStorage.setItem("fedmerge-theme", theme); } catch { /* a file may not */ }
  };
  let theme = themes.includes(stored()) ? stored() : "auto";
  wear(theme);
  const toggle = make("", "", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    wear(theme);
    name();
  });
  const name = () => {
    toggle.textContent = `Theme: ${theme}`;
  };
  name();
  document.querySelector("header").append(toggle);

  // Columns sort: texts by the alphabet, numbers by size, what is empty last.
  const order = (rows, column, down) => rows.sort((one, other) => {
    const [a, b] = [one, other].map((row) => row.cells[column].textContent);
    if (a === "" || b === "") return (a === "") - (b === "");
    const numbers = a !== "" && b !== "" && isFinite(a) && isFinite(b);
    return (numbers ? a - b : a.localeCompare(b)) * (down ? -1 : 1);
  });
  const sortable = (table) => {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const title = head.textContent;
      head.textContent = "";
      head.append(make(title, "", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        [...table.tHead.rows[0].cells].forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        table.tBodies[0].append(...order([...table.tBodies[0].rows], column, down));
      }));
    });
  };

  // A table as a spreadsheet takes it: columns by tabs.
  const copyable = (table) => {
    table.caption.append(make("Copy", `Copy the table ${table.caption.textContent}`, async (button) => {
      const clean = (cell) => cell.textContent.replace(/\s+/g, " ").trim();
      const text = [...table.rows].map((row) => [...row.cells].map(clean).join("\t")).join("\n");
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(table);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    }));
  };
  document.querySelectorAll("table").forEach((table) => {
    if (table.tBodies[0].rows.length > 2) sortable(table);
    copyable(table);
  });

  // What is folded is printed too.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((fold) => { fold.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((fold) => { fold.open = false; }));
})();
