// A process that answers one JSON line per JSON line. One that dies or takes too long is ended, and the
// next question starts another.
import type { ChildProcessByStdio } from 'node:child_process';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Readable, Writable } from 'node:stream';

interface Running {
  readonly child: ChildProcessByStdio<Writable, Readable, null>;
  readonly lines: AsyncIterator<string>;
}

/** One side of the benchmark. */
export class JsonChild {
  private running: Running | undefined;

  constructor(
    private readonly command: string,
    private readonly args: readonly string[],
  ) {}

  /** @throws when the process answers an error, dies, or does not answer within `seconds` */
  async ask(request: object, seconds: number): Promise<unknown> {
    const { child, lines } = (this.running ??= this.start());
    child.stdin.write(`${JSON.stringify(request)}\n`);
    const late = new AbortController();
    const answer = await Promise.race([
      lines.next(),
      sleep(1000 * seconds, undefined, { signal: late.signal }).catch(() => undefined),
    ]);
    late.abort();
    if (answer === undefined || answer.done === true) {
      const { exitCode, signalCode } = child;
      this.end();
      throw new Error(
        answer === undefined
          ? `no answer within ${String(seconds)} s`
          : `the process ended (${signalCode ?? String(exitCode)})`,
      );
    }
    const reply = JSON.parse(answer.value) as { readonly error?: string };
    if (reply.error !== undefined) throw new Error(reply.error);
    return reply;
  }

  /** Ends the process; the next question starts another. */
  end(): void {
    this.running?.child.kill('SIGKILL');
    this.running = undefined;
  }

  private start(): Running {
    const child = spawn(this.command, this.args, { stdio: ['pipe', 'pipe', 'inherit'] });
    // A question to a process that is gone shows as the end of its answers.
    child.stdin.on('error', () => undefined);
    child.on('error', () => undefined);
    return { child, lines: createInterface({ input: child.stdout })[Symbol.asyncIterator]() };
  }
}
