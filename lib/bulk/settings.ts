// What a run that goes on must have in common with the one that began it.

/** Settings that differ, a line each, at most a few. */
export function settingsDiffer(
  was: Readonly<Record<string, string>>,
  is: Readonly<Record<string, string>>,
): string[] {
  const names = [...new Set([...Object.keys(was), ...Object.keys(is)])];
  const lines = names
    .filter((name) => was[name] !== is[name])
    .map((name) => `  ${name}: was ${was[name] ?? 'not there'}, is ${is[name] ?? 'not there'}`);
  return lines.length > 5 ? [...lines.slice(0, 5), `  … ${String(lines.length - 5)} more`] : lines;
}
