// Which colour means what. All are such as the colour-blind can tell apart (after Okabe and Ito).

const CURVES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d00", "#999999"];
export const curveColour = (index) => CURVES[index % CURVES.length];

// Light enough for black figures on them.
const WORKERS = ["#56b4e9", "#e69f00", "#2fbf95", "#e08fbe", "#f0e442", "#f28a4b", "#9db4ff", "#b8b8b8"];
export const workerColour = (worker) => WORKERS[worker % WORKERS.length];

export const EVENTS = {
  begun: "#999999", joined: "#009e73", left: "#b8860b", reassigned: "#d55e00", resumed: "#cc79a7", checkpoint: "#56b4e9",
};

// A colour of the theme.
export const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
