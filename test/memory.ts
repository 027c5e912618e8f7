// Whether a test gave back what it took.
import { loadAddon } from '../lib/native/load';

type Memory = ReturnType<ReturnType<typeof loadAddon>['memory']>;

/**
 * No more is in use than before. Less may be: what an earlier test file left to the garbage collector goes
 * when it pleases. Such a program also keeps the arena, which others may have made larger since.
 */
export function expectGivenBack(before: Memory): void {
  const { cuda, ...now } = loadAddon().memory();
  const { cuda: cudaBefore, ...host } = before;
  expect(exceeding(now, host)).toEqual([]);
  expect(exceeding(cuda, cudaBefore)).toEqual([]);
}

function exceeding(now: object, before: object): [string, number, number][] {
  const most = before as Readonly<Record<string, number>>;
  return Object.entries(now as Readonly<Record<string, number>>)
    .filter(([name]) => name !== 'arenaBytes' || most[name] === 0)
    .filter(([name, value]) => value > most[name])
    .map(([name, value]) => [name, value, most[name]]);
}
