// On imprime toujours en thème clair : le papier ne garde pas le fond sombre.
{
  const page = document.documentElement.dataset;
  let theme;
  addEventListener("beforeprint", () => { theme = page.theme; page.theme = "light"; });
  addEventListener("afterprint", () => { page.theme = theme; });
}

// Le thème rend accessibles au clavier les blocs qui défilent, mais ne les cherche que parmi les blocs
// visibles, au chargement et quand la fenêtre change : il faut l'avertir de ce que l'on déplie.
{
  const announce = () => dispatchEvent(new Event("resize"));
  document.addEventListener("toggle", announce, true);
  document.addEventListener("click", (event) => {
    if (event.target.closest(".admonition.toggle > .admonition-title")) announce();
  });
}
