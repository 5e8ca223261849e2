// Draw formulas: reads them as JSON from standard input, and writes their HTML and the styles it
// needs. Run as: node formulas.js FOLDER_OF_MATHJAX
const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
const { init } = require(`${process.argv[2]}/node-main.js`);

init({
  loader: { load: ["input/tex-full", "output/chtml", "adaptors/liteDOM", "a11y/assistive-mml"] },
  // What it does not know is an error, and not a word in red.
  tex: { packages: { "[-]": ["noerrors", "noundefined"] } },
  chtml: { fontURL: "fonts" },
}).then(async (MathJax) => {
  const adaptor = MathJax.startup.adaptor;
  const drawn = [];
  for (const { tex, display } of formulas)
    drawn.push(adaptor.outerHTML(await MathJax.tex2chtmlPromise(tex, { display })));
  const styles = adaptor.textContent(MathJax.chtmlStylesheet());
  process.stdout.write(JSON.stringify({ drawn, styles }));
});
