// Runs before the first paint, so that a chosen theme never flashes. Kept in step with src/lib/theme.svelte.ts.
(function () {
  try {
    var choice = localStorage.getItem("llamaherd.theme");
    if (choice === "light" || choice === "dark") document.documentElement.dataset.theme = choice;
  } catch {
    // Storage may be forbidden: then the system's theme holds.
  }
})();
