// A figure opens large over the page: click, or Enter on it; Escape or another click closes it.
// Without this script the same links lead to the drawing itself.
document.addEventListener("DOMContentLoaded", () => {
  const large = document.createElement("dialog");
  large.className = "large";
  large.setAttribute("aria-label", "Figure, large");
  const picture = large.appendChild(document.createElement("img"));
  const close = large.appendChild(document.createElement("button"));
  close.type = "button";
  close.textContent = "Close";
  large.addEventListener("click", () => large.close());
  document.body.append(large);

  const open = (source, text) => {
    picture.src = source;
    picture.alt = text;
    large.showModal();
  };
  for (const image of document.querySelectorAll("article img")) {
    if (image.closest("a")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "enlarge";
    image.replaceWith(button);
    button.append(image);
    button.addEventListener("click", () => open(image.src, image.alt));
  }
  for (const link of document.querySelectorAll("article a[href$='.png']")) {
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      open(link.href, link.querySelector("img")?.alt ?? link.textContent);
    });
  }
});
