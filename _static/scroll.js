// What scrolls sideways inside its box takes the focus, so that the arrow keys can move it, and shows
// by a faded edge that there is more.
(() => {
  const boxes =
    "article :is(pre, .pst-scrollable-table-container, .cell_output .output, .explorer-scroll, .math, mjx-container, figure)";
  const idle = window.requestIdleCallback ?? ((look) => setTimeout(look, 20));
  let left = [];
  const mark = (box) =>
    box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  // A few at a time: measuring them all would hold up the page.
  const look = () => {
    for (const box of left.splice(0, 16)) {
      const scrolls =
        box.scrollWidth > box.clientWidth + 1 &&
        /auto|scroll/.test(getComputedStyle(box).overflowX);
      if (scrolls) {
        box.tabIndex = 0;
        box.onscroll = () => mark(box);
        mark(box);
      } else if (box.tabIndex === 0) {
        box.removeAttribute("tabindex");
        box.classList.remove("more");
      }
    }
    if (left.length) idle(look);
    else document.documentElement.dataset.scroll = "known";
  };
  const start = () => {
    left = [...document.querySelectorAll(boxes)];
    idle(look);
  };
  window.addEventListener("load", start);
  window.addEventListener("resize", start);
})();
