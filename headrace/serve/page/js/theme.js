// Puts the chosen colours on before anything is drawn; a plain script, because modules run after that.
try {
  document.documentElement.dataset.theme = localStorage.getItem("headrace.theme") ?? "";
} catch {
  // storage is switched off: the system's colours then
}
