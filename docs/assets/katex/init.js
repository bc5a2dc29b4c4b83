// Render every formula that arithmatex marked; document$ also fires after instant navigation.
document$.subscribe(() => {
  for (const node of document.querySelectorAll(".arithmatex")) {
    renderMathInElement(node, {
      delimiters: [
        { left: "\\[", right: "\\]", display: true },
        { left: "\\(", right: "\\)", display: false },
      ],
      throwOnError: false,
    });
    // A line may break after a formula, but not between it and the comma that follows.
    const next = node.nextSibling;
    const mark = next && next.nodeType === Node.TEXT_NODE && /^[,.;:)?!]+/.exec(next.data);
    if (mark && node.tagName === "SPAN" && !node.parentNode.classList.contains("nowrap")) {
      const box = document.createElement("span");
      box.className = "nowrap";
      node.replaceWith(box);
      box.append(node, mark[0]);
      next.data = next.data.slice(mark[0].length);
    }
  }
});
