// Keys of the reader; its help lists them.
const COLOURS = { e: "entropy", o: "logprob", v: "value", a: "advantage", g: "gap" };
const MOVES = {
  ...{ ArrowLeft: ["moveToken", -1], ArrowRight: ["moveToken", 1] },
  ...{ ArrowUp: ["moveSegment", -1], ArrowDown: ["moveSegment", 1] },
  ...{ p: ["moveSegment", -1], n: ["moveSegment", 1] },
  ...{ h: ["moveCompletion", -1], l: ["moveCompletion", 1] },
  ...{ k: ["movePrompt", -1], j: ["movePrompt", 1] },
  ...{ "[": ["moveStep", -1], "]": ["moveStep", 1] },
};
const ELSEWHERE = "input, select, textarea, dialog, table, [role=tab], [role=grid]";

/** Keys typed into a field or another component stay there; a hidden reader hears none. */
export function listen(root, page) {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.(ELSEWHERE) && !event.target.closest(".text");
    const modified = event.ctrlKey || event.metaKey || event.altKey;
    if (typing || modified || !root.offsetParent || !page.steps) return;
    const { key } = event;
    const [move, by] = (Object.hasOwn(MOVES, key) && MOVES[key]) || [];
    if (move && (page.group || move === "moveStep")) page[move](by);
    else if (Object.hasOwn(COLOURS, key) && page.group) page.setColour(COLOURS[key]);
    else if (key === "r" && page.group) page.change(null);
    else if (key === "/") page.frame.search.focus();
    else if (key === "?") page.frame.help.showModal();
    else return;
    event.preventDefault();
  });
}
