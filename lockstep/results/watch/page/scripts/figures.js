// Figures as people read them.

const isMissing = (value) => value === null || value === undefined;

export function number(value, digits = 4) {
  if (isMissing(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(2);
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

export const percent = (value) => (isMissing(value) ? "–" : `${(100 * value).toFixed(2)}\u00a0%`);

export const count = (value) => (isMissing(value) ? "–" : Math.round(value).toLocaleString("en"));

export const speed = (value) => (isMissing(value) ? "–" : `${count(value)} samples/s`);

export function duration(seconds) {
  if (isMissing(seconds)) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)}\u00a0s`;
  if (seconds < 90) return `${seconds.toFixed(0)}\u00a0s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes}\u00a0min` : `${Math.floor(minutes / 60)}\u00a0h ${minutes % 60}\u00a0min`;
}

export function bytes(value) {
  if (isMissing(value)) return "–";
  return value < 1e9 ? `${Math.round(value / 1e6)}\u00a0MB` : `${(value / 1e9).toFixed(1)}\u00a0GB`;
}

// The day and the time in the reader's zone; the year only if it is another.
export function moment(seconds) {
  const date = new Date(1000 * seconds);
  const year = date.getFullYear() === new Date().getFullYear() ? undefined : "numeric";
  return date.toLocaleString("en-GB", { day: "numeric", month: "short", year, hour: "2-digit", minute: "2-digit" });
}
