// PyTorch in a process of its own, where Python has it. It times its runs by its own clock, so what
// the pipe costs is not counted.
import type { ChildProcessByStdio } from 'node:child_process';
import { spawn, spawnSync } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { concatenate } from '../lib/weights';
import { peersFolder } from './peers';

const python = process.env.SIGLIP2_BENCH_PYTHON ?? 'python3';

/** What a peer answers. */
export interface Reply {
  readonly error?: string;
  readonly seconds?: number;
  readonly loss?: number;
  readonly first?: readonly number[];
  readonly torch?: string;
  readonly transformers?: string;
}

/** Why PyTorch cannot be a peer here, or undefined. */
export function pytorchMissing(): string | undefined {
  const { status } = spawnSync(python, ['-c', 'import torch, transformers, safetensors']);
  return status === 0 ? undefined : `${python} has no torch and transformers`;
}

/** A Python script that answers one line of JSON with one line of JSON. */
export class PythonPeer {
  private readonly child: ChildProcessByStdio<Writable, Readable, null>;
  private readonly lines: AsyncIterator<string>;

  /** @param script - in the folder of peers */
  constructor(script: string, ...args: readonly string[]) {
    this.child = spawn(python, [join(peersFolder, script), ...args], {
      stdio: ['pipe', 'pipe', 'ignore'],
    });
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
  }

  /** @throws the peer's error */
  async ask(request: object): Promise<Reply> {
    this.child.stdin.write(`${JSON.stringify(request)}\n`);
    const line = await this.lines.next();
    if (line.done === true) throw new Error('PyTorch: the process ended');
    const reply = JSON.parse(line.value) as Reply;
    if (reply.error !== undefined) throw new Error(`PyTorch: ${reply.error}`);
    return reply;
  }

  close(): void {
    this.child.stdin.end();
  }
}

/** A vision tower in PyTorch. */
export class PyTorch {
  private readonly peer: PythonPeer;
  private readonly file = join(tmpdir(), `siglip2_bench_${String(process.pid)}.f32`);
  /** Of torch and transformers; empty until {@link load}. */
  versions: Readonly<Record<string, string>> = {};

  constructor(folder: string, threads: number) {
    this.peer = new PythonPeer('pytorch.py', folder, String(threads));
  }

  /** Takes images (3, side, side) for the runs to come. */
  async load(images: readonly Float32Array[], side: number): Promise<void> {
    writeFileSync(this.file, concatenate(images));
    const reply = await this.peer.ask({ pixels: this.file, shape: [images.length, 3, side, side] });
    rmSync(this.file);
    const { torch = '', transformers = '' } = reply;
    this.versions = { torch, transformers };
  }

  /** One forward. @returns its seconds and the first image's embedding before normalisation */
  async run(
    precision: 'float32' | 'bfloat16',
    compiled: boolean,
  ): Promise<{ readonly seconds: number; readonly first: readonly number[] }> {
    const { seconds = NaN, first = [] } = await this.peer.ask({ run: precision, compiled });
    return { seconds, first };
  }

  close(): void {
    this.peer.close();
  }
}
