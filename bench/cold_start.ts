// Process start to first embedding, page cache warm, and the peak of resident memory; a new process
// for every reading, engines in turns.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { median, readPeak } from './measure';

export interface ColdEngine {
  readonly name: string;
  /** Arguments of cold_start_child.js. */
  readonly args: readonly string[];
}

export interface ColdStart {
  readonly milliseconds: number;
  /** 2^20 bytes. */
  readonly mebibytes: number;
}

/** Medians of `times` starts of each engine; the first of each, which warms the caches, is dropped. */
export async function coldStarts(
  engines: readonly ColdEngine[],
  times: number,
): Promise<ReadonlyMap<string, ColdStart>> {
  const readings = new Map<string, ColdStart[]>(engines.map(({ name }) => [name, []]));
  for (let round = -1; round < times; round++) {
    for (const { name, args } of engines) {
      readPeak();
      const reading = await start(name, args);
      if (round >= 0) readings.get(name)?.push(reading);
    }
  }
  return new Map(
    [...readings].map(([name, list]) => [
      name,
      {
        milliseconds: median(list.map(({ milliseconds }) => milliseconds)),
        mebibytes: median(list.map(({ mebibytes }) => mebibytes)),
      },
    ]),
  );
}

function start(name: string, args: readonly string[]): Promise<ColdStart> {
  return new Promise((resolve, reject) => {
    const begin = performance.now();
    const child = spawn(process.execPath, [join(__dirname, 'cold_start_child.js'), ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let [text, errors, end] = ['', '', 0];
    child.stdout.on('data', (chunk: Buffer) => {
      end = performance.now();
      text += chunk.toString();
    });
    child.stderr.on('data', (chunk: Buffer) => {
      errors += chunk.toString();
    });
    child.on('error', reject);
    child.on('close', (code) => {
      if (code !== 0 || text === '') {
        reject(
          new Error(`cold start of ${name}: ${errors.trim().split('\n').slice(-8).join('\n')}`),
        );
        return;
      }
      const { maxRSS } = JSON.parse(text) as { maxRSS: number };
      resolve({ milliseconds: end - begin, mebibytes: maxRSS / 1024 });
    });
  });
}
