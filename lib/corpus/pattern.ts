// Patterns of names as shells and WebDataset write them: {000..127} and {a,b} make several names;
// *, ? and [a-z] match within a name, ** across folders.
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { SiglipError } from '../errors';

// More names than this from one pattern is a slip of the keyboard.
const MAX_NAMES = 1_000_000;

/**
 * The names that the braces of a pattern stand for, in order: `a-{08..11}.tar` gives a-08.tar to
 * a-11.tar. A pattern without braces stands for itself.
 *
 * @throws SiglipError ERR_ARGUMENT for more than a million names
 */
export function expandBraces(pattern: string): string[] {
  const open = pattern.indexOf('{');
  const close = closing(pattern, open);
  if (open < 0 || close < 0) return [pattern];
  const choices = choicesOf(pattern.slice(open + 1, close));
  if (choices === undefined) {
    const head = pattern.slice(0, close + 1);
    return expandBraces(pattern.slice(close + 1)).map((tail) => head + tail);
  }
  const tails = expandBraces(pattern.slice(close + 1));
  const heads = choices.flatMap(expandBraces);
  if (heads.length * tails.length > MAX_NAMES) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `corpus: ${pattern} must stand for at most ${String(MAX_NAMES)} names, got ${String(heads.length * tails.length)}`,
    );
  }
  return heads.flatMap((head) => tails.map((tail) => pattern.slice(0, open) + head + tail));
}

function closing(pattern: string, open: number): number {
  let depth = 0;
  for (let at = Math.max(open, 0); at < pattern.length; at++) {
    if (pattern[at] === '{') depth++;
    if (pattern[at] === '}' && --depth === 0) return at;
  }
  return -1;
}

function choicesOf(inside: string): string[] | undefined {
  const range = /^(\d+)\.\.(\d+)$/u.exec(inside);
  if (range !== null) {
    const [from, to] = [Number(range[1]), Number(range[2])];
    const count = Math.abs(to - from) + 1;
    if (count > MAX_NAMES) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `corpus: {${inside}} must stand for at most ${String(MAX_NAMES)} names, got ${String(count)}`,
      );
    }
    const padded = [range[1], range[2]].some((text) => text.length > 1 && text.startsWith('0'));
    const width = padded ? Math.max(range[1].length, range[2].length) : 0;
    const step = from <= to ? 1 : -1;
    return Array.from({ length: count }, (_, i) => String(from + step * i).padStart(width, '0'));
  }
  const parts: string[] = [];
  let depth = 0;
  let part = '';
  for (const character of inside) {
    if (character === '{') depth++;
    if (character === '}') depth--;
    if (character === ',' && depth === 0) {
      parts.push(part);
      part = '';
    } else {
      part += character;
    }
  }
  parts.push(part);
  return parts.length > 1 ? parts : undefined;
}

/** Whether a name holds one of `*`, `?`, `[`. */
export function isWild(pattern: string): boolean {
  return /[*?[]/u.test(pattern);
}

/**
 * A test of paths, parts divided by `/`, against a pattern. One without `/` is held against the last
 * part alone, as in .gitignore.
 */
export function matcher(pattern: string): (path: string) => boolean {
  const expressions = expandBraces(pattern).map(expressionOf);
  const lastOnly = !pattern.includes('/');
  return (path) => {
    const name = lastOnly ? path.slice(path.lastIndexOf('/') + 1) : path;
    return expressions.some((expression) => expression.test(name));
  };
}

function expressionOf(pattern: string): RegExp {
  let source = '';
  for (let at = 0; at < pattern.length; at++) {
    const character = pattern[at];
    if (character === '*' && pattern[at + 1] === '*') {
      const folder = pattern[at + 2] === '/';
      source += folder ? '(?:[^/]*/)*' : '.*';
      at += folder ? 2 : 1;
    } else if (character === '*') {
      // Stars in a row mean one: runs of them must not multiply the work of the match.
      source += '[^/]*';
    } else if (character === '?') {
      source += '[^/]';
    } else if (character === '[' && pattern.indexOf(']', at + 2) > 0) {
      const end = pattern.indexOf(']', at + 2);
      const set = pattern
        .slice(at + 1, end)
        .replace(/\\/gu, '\\\\')
        .replace(/\[/gu, '\\[');
      source += `[${set.startsWith('!') ? `^${set.slice(1)}` : set}]`;
      at = end;
    } else {
      source += character.replace(/[.+^$()|{}\\/[\]]/u, '\\$&');
    }
  }
  return new RegExp(`^${source}$`, 'u');
}

/**
 * The paths a pattern stands for. Braces give paths whether they exist or not, in their order; wild
 * cards give those that exist, sorted.
 *
 * @throws SiglipError ERR_FILE when wild cards match nothing
 */
export async function expandPattern(pattern: string): Promise<string[]> {
  // A file may be called like a pattern.
  if (await exists(pattern)) return [pattern];
  const paths: string[] = [];
  for (const path of expandBraces(pattern)) {
    if (!isWild(path)) {
      paths.push(path);
      continue;
    }
    const found = await matching(path);
    if (found.length === 0) {
      throw new SiglipError('ERR_FILE', `corpus: ${path} must match files, got none`);
    }
    paths.push(...found);
  }
  return paths;
}

function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

async function matching(pattern: string): Promise<string[]> {
  const parts = pattern.split('/');
  const fixed = parts.findIndex(isWild);
  const rest = parts.slice(fixed).join('/');
  const base = fixed === 0 ? '.' : parts.slice(0, fixed).join('/') || '/';
  const matches = matcher(rest.includes('/') ? rest : `./${rest}`.slice(2));
  const recursive = rest.includes('/');
  const names = await readdir(base, { recursive }).catch(() => []);
  return names
    .map((name) => name.split('\\').join('/'))
    .filter((name) => matches(name))
    .sort(compare)
    .map((name) => (fixed === 0 ? name : join(base, name)));
}

/** Order of UTF-16 units, the same on every machine and in every language. */
export function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
