// A browser without a window paints no frames while it prints, and reveal.js waits for some.
if (/print-pdf/.test(location.search)) window.requestAnimationFrame = step => setTimeout(step, 0);
// What is too wide or too high for a slide is shown smaller rather than cut off, a few words larger.
function fit() {
  const slides = document.querySelector(".reveal .slides");
  slides.classList.add("measuring");
  for (const slide of slides.querySelectorAll(".geo-slide")) {
    const share = Math.min(1250 / slide.scrollWidth, 690 / slide.scrollHeight);
    const few = slide.scrollHeight < 400 && !slide.querySelector("img, table, .geo-view");
    if (share < 1 || few) slide.style.zoom = few ? 1.3 : share;
  }
  for (const table of slides.querySelectorAll(".jp-OutputArea-output > table")) {
    const share = Math.min(1230 / table.offsetWidth, 600 / table.offsetHeight);
    if (share < 1) table.style.zoom = share;
  }
  slides.classList.remove("measuring");
}
addEventListener("load", () => {  // when pictures have their size
  fit();
  Reveal.initialize({
    width: 1280, height: 720, margin: 0.03, hash: true, slideNumber: "c/t",
    transition: "none", center: false, controls: true, progress: true,
    navigationMode: "linear"  // the right arrow visits every slide, also those below another
  });
});
