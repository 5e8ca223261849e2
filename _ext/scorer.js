// Sphinx's own scores, but that a page which teaches a term comes before the glossary's entry.
var Scorer = {
  score: ([docname, title, anchor, description, score]) =>
    docname === "chapters/glossary" ? score - 20 : score,
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
