// What scrolls sideways inside its box takes the focus, so that the arrow keys can move it.
(() => {
  const boxes =
    "article :is(pre, .pst-scrollable-table-container, .cell_output .output, .explorer-scroll, .math, mjx-container, figure)";
  const look = () =>
    document.querySelectorAll(boxes).forEach((box) => {
      const scrolls =
        box.scrollWidth > box.clientWidth + 1 &&
        /auto|scroll/.test(getComputedStyle(box).overflowX);
      if (scrolls) box.tabIndex = 0;
      else if (box.tabIndex === 0) box.removeAttribute("tabindex");
    });
  window.addEventListener("load", look);
  window.addEventListener("resize", look);
})();
