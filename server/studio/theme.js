// Before anything is painted: the theme that was chosen, if one was.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("layerloom.theme");
  } catch {}
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
