// A small test runner, since the tests on a GPU run where Jest is not: tests in the order in which they
// were declared, one line per failure, and what they measured as JSON.
import { writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

/** Numbers of a test worth keeping: the largest error over its bar, seconds. */
export type Figures = Readonly<Record<string, number>>;

export type Outcome = 'passed' | 'failed' | 'skipped';

/** What became of one test. */
export interface TestRecord {
  readonly group: string;
  readonly name: string;
  readonly outcome: Outcome;
  readonly seconds: number;
  /** Why it failed or was skipped. */
  readonly reason?: string;
  readonly figures?: Figures;
}

// A test may give figures.
type Body = () => Promise<Figures | undefined> | Promise<void> | Figures | undefined;

interface Declared {
  readonly group: string;
  readonly name: string;
  readonly body: Body;
  readonly skip: string | undefined;
}

/** Tests with a group's name before them. */
export interface Group {
  test(name: string, body: Body): void;
  /** Declared for the count alone. */
  skip(name: string, reason: string): void;
}

export interface RunnerOptions {
  /** Only tests whose group and name contain one of the words; all without any. */
  readonly words: readonly string[];
  /** Seconds for one test. */
  readonly timeout: number;
  /** Seconds for all; what is not begun by then fails. */
  readonly limit: number;
  /** Where the records go. */
  readonly json: string | undefined;
  /** Whether passed tests get a line, too. */
  readonly verbose: boolean;
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Collects tests and runs them. */
export class Runner {
  private readonly declared: Declared[] = [];

  /** @param missing - why no test can run here, if so */
  constructor(private readonly missing?: string) {}

  group(group: string): Group {
    return {
      test: (name, body) => this.declared.push({ group, name, body, skip: this.missing }),
      skip: (name, skip) => this.declared.push({ group, name, body: () => undefined, skip }),
    };
  }

  /** Runs what was declared. @returns whether nothing failed */
  async run(options: RunnerOptions, facts: Readonly<Record<string, unknown>>): Promise<boolean> {
    const { words, limit, json } = options;
    const start = performance.now();
    const records: TestRecord[] = [];
    // As they are now: a device that has failed answers no more.
    const found = structuredClone(facts);
    const save = (): void => {
      if (json === undefined) return;
      writeFileSync(json, JSON.stringify({ facts: found, records }, null, 1));
    };
    const chosen = this.declared.filter(({ group, name }) => {
      const whole = `${group} ${name}`;
      return words.length === 0 || words.some((word) => whole.includes(word));
    });
    let group = '';
    let saved = start;
    for (const test of chosen) {
      if (test.group !== group && this.missing === undefined) {
        group = test.group;
        const elapsed = (performance.now() - start) / 1000;
        say(`${group}  (after ${elapsed.toFixed(1)} s)`);
      }
      const late = performance.now() - start > 1000 * limit;
      const record = late
        ? recordOf(test, 'failed', 0, `not begun within ${String(limit)} s`)
        : await runOne(test, options.timeout);
      records.push(record);
      if (record.outcome === 'failed') {
        say(`FAILED  ${record.group}: ${record.name}: ${record.reason ?? ''}`);
      } else if (options.verbose) {
        say(`${record.outcome}  ${record.name}${record.reason ? `: ${record.reason}` : ''}`);
      }
      // What a crash would take along otherwise.
      if (performance.now() - saved > 2000) {
        save();
        saved = performance.now();
      }
    }
    save();
    const count = (outcome: Outcome): number =>
      records.filter((record) => record.outcome === outcome).length;
    const reasons = new Set(
      records.flatMap(({ outcome, reason }) =>
        outcome === 'skipped' && reason !== undefined ? [reason] : [],
      ),
    );
    for (const reason of reasons) {
      const those = records.filter(
        (record) => record.outcome === 'skipped' && record.reason === reason,
      );
      say(`skipped  ${String(those.length)}: ${reason}`);
    }
    say(
      `${String(count('passed'))} passed, ${String(count('failed'))} failed, ${String(count('skipped'))} skipped`,
    );
    return count('failed') === 0;
  }
}

function recordOf(
  { group, name }: Declared,
  outcome: Outcome,
  seconds: number,
  reason?: string,
  figures?: Figures,
): TestRecord {
  return {
    group,
    name,
    outcome,
    seconds: Math.round(seconds * 1000) / 1000,
    ...(reason === undefined ? {} : { reason }),
    ...(figures === undefined ? {} : { figures }),
  };
}

async function runOne(test: Declared, timeout: number): Promise<TestRecord> {
  if (test.skip !== undefined) return recordOf(test, 'skipped', 0, test.skip);
  const start = performance.now();
  const elapsed = (): number => (performance.now() - start) / 1000;
  const late = new AbortController();
  try {
    const figures = await Promise.race([
      Promise.resolve(test.body()),
      sleep(1000 * timeout, undefined, { signal: late.signal, ref: false }).then(() => {
        throw new Error(`must end within ${String(timeout)} s`);
      }),
    ]);
    return recordOf(test, 'passed', elapsed(), undefined, figures ?? undefined);
  } catch (error) {
    return recordOf(test, 'failed', elapsed(), reasonOf(error));
  } finally {
    late.abort();
  }
}

/** Throws unless a condition holds. */
export function must(condition: boolean, message: () => string): void {
  if (!condition) throw new Error(message());
}

/** Throws unless two results have the same bits. */
export function mustEqualBits(
  what: string,
  actual: Readonly<Record<string, ArrayLike<number>>>,
  expected: Readonly<Record<string, ArrayLike<number>>>,
): void {
  for (const [name, values] of Object.entries(expected)) {
    const others = actual[name];
    must(others?.length === values.length, () => `${what}: ${name} must be there`);
    for (let i = 0; i < values.length; i++) {
      if (Object.is(values[i], others[i])) continue;
      throw new Error(
        `${what}: ${name}[${String(i)}] must be ${String(values[i])} again, got ${String(others[i])}`,
      );
    }
  }
}
