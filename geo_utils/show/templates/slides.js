// A browser without a window paints no frames while it prints, and reveal.js waits for some.
if (/print-pdf/.test(location.search)) window.requestAnimationFrame = step => setTimeout(step, 0);
// What is too wide or too high for a slide is shown smaller rather than cut off.
function fit() {
  const slides = document.querySelector(".reveal .slides");
  slides.classList.add("measuring");
  for (const slide of slides.querySelectorAll(".geo-slide")) {
    const share = Math.min(1250 / slide.scrollWidth, 690 / slide.scrollHeight);
    if (share < 1) slide.style.zoom = share;
  }
  slides.classList.remove("measuring");
}
addEventListener("load", () => {  // when pictures have their size
  fit();
  Reveal.initialize({
    width: 1280, height: 720, margin: 0.03, hash: true, slideNumber: "c/t",
    transition: "none", center: false, controls: true, progress: true
  });
});
