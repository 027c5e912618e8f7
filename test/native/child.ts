// Runs a script in a Node of its own with the addon at hand, for what would end the test runner or
// needs its own environment variables: exits, crashes, workers, settings.
import { spawnSync } from 'node:child_process';
import { addonPath } from '../../lib/native/load';

export interface ChildResult {
  readonly status: number | null;
  readonly signal: string | null;
  readonly output: string;
  readonly milliseconds: number;
}

// `long(n)` is a program of n sums over 2^20 elements, about a millisecond each.
const PRELUDE = `
'use strict';
class SiglipError extends Error {
  constructor(code, message) { super(message); this.code = code; }
}
const load = () => {
  const addon = require(process.env.SIGLIP2_TEST_ADDON);
  addon.initialize(SiglipError);
  return addon;
};
const kernelsOf = (addon) => addon.describe().kernels;
const index = (addon, name) => kernelsOf(addon).findIndex((kernel) => kernel.name === name);
const view = (storage, offset, ...shape) => ({ storage, offset, dtype: 0, shape });
const long = (addon, n) => {
  const kernel = index(addon, 'add_forward');
  const elements = 1 << 20;
  const [a, b] = [view(-1, 0, elements), view(-1, 4 * elements, elements)];
  return new addon.Program({
    name: 'long', arenaBytes: 8 * elements, bufferBytes: [],
    steps: Array.from({ length: n }, (_, i) => ({
      kernel, label: 'sum ' + i, args: i % 2 ? [a, a, b] : [b, b, a],
    })),
  });
};
`;

/** The part of every child script that a worker thread needs too. */
export const prelude = PRELUDE;

export function runChild(
  script: string,
  env: Record<string, string> = {},
  flags: readonly string[] = [],
): ChildResult {
  const start = performance.now();
  const { status, signal, stdout, stderr } = spawnSync(
    process.execPath,
    [...flags, '-e', PRELUDE + script],
    {
      encoding: 'utf8',
      timeout: 50_000,
      killSignal: 'SIGKILL',
      env: { ...process.env, ...env, SIGLIP2_TEST_ADDON: addonPath() },
    },
  );
  return { status, signal, output: stdout + stderr, milliseconds: performance.now() - start };
}
