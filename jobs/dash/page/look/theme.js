// Before the first paint: the scheme that was chosen last, else the system's.
(() => {
  const chosen = localStorage.getItem("tempsamp-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
