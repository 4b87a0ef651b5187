/** Light, dark, or as the system says. public/theme.js applies the choice before the first paint. */

export type Theme = "system" | "light" | "dark";
const KEY = "llamaherd.theme";

function stored(): Theme {
  try {
    const value = localStorage.getItem(KEY);
    return value === "light" || value === "dark" ? value : "system";
  } catch {
    return "system";
  }
}

let choice = $state<Theme>(stored());
let systemDark = $state(false);
const media = window.matchMedia("(prefers-color-scheme: dark)");
systemDark = media.matches;
media.addEventListener("change", () => {
  systemDark = media.matches;
});

export const theme = {
  get choice(): Theme {
    return choice;
  },
  /** What is on the screen now: charts redraw when it changes. */
  get dark(): boolean {
    return choice === "dark" || (choice === "system" && systemDark);
  },
  choose(next: Theme): void {
    choice = next;
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      if (next === "system") localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, next);
    } catch {
      // Storage may be forbidden: the choice then holds until the page is closed.
    }
  },
};
