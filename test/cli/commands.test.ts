// The command line as a user runs it: each command a process of its own, on a model that the demo
// has just trained for a few steps.
import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';

const root = join(__dirname, '..', '..');
let folder = '';
let model = '';

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function siglip2(...args: readonly string[]): Outcome {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ['-r', join(root, 'test', 'typescript.js'), join(root, 'lib', 'cli', 'main.ts'), ...args],
    { cwd: root, encoding: 'utf8' },
  );
  return { status, stdout, stderr };
}

function jsonLines(text: string): Record<string, unknown>[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-cli-'));
  model = join(folder, 'run', 'model');
  for (const [name, colour] of [
    ['red.png', '#f00'],
    ['green.png', '#0f0'],
  ]) {
    await sharp({ create: { width: 40, height: 30, channels: 3, background: colour } })
      .png()
      .toFile(join(folder, name));
  }
});

afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

test('demo trains, saves, evaluates and writes a report', () => {
  const { status, stdout, stderr } = siglip2('demo', '--steps', '6', '-o', join(folder, 'run'));
  expect(stderr).toMatch(/6\/6 steps/);
  expect(status).toBe(0);
  expect(stdout).toMatch(/unseen style \(twemoji\): top-1 .* of 259 emoji/);
  expect(stdout).toMatch(/training styles: top-1/);
  const report = readFileSync(join(folder, 'run', 'report.html'), 'utf8');
  expect(report).not.toMatch(/<script|src="http|undefined|NaN/);
  expect(report).toMatch(/pixel baseline/);
  expect(JSON.parse(readFileSync(join(model, 'config.json'), 'utf8'))).toMatchObject({
    model_type: 'siglip',
  });
}, 240_000);

test('embed writes one line per image and text, of unit length', () => {
  const output = join(folder, 'out.jsonl');
  const red = join(folder, 'red.png');
  const { status } = siglip2('embed', '-m', model, red, '-t', 'dog', '-o', output);
  expect(status).toBe(0);
  const lines = jsonLines(readFileSync(output, 'utf8'));
  expect(lines.map(({ image, text }) => image ?? text)).toEqual([red, 'dog']);
  for (const { embedding } of lines) {
    const norm = Math.hypot(...(embedding as number[]));
    expect(Math.abs(norm - 1)).toBeLessThan(1e-5);
  }
});

test('embed in int8: near, not the same', () => {
  const args = ['embed', '-m', model, '-t', 'dog'];
  const [exact, narrow] = [args, [...args, '--precision', 'int8']].map((words) => {
    const [{ embedding }] = jsonLines(siglip2(...words).stdout);
    return embedding as number[];
  });
  const cosine = exact.reduce((sum, value, i) => sum + value * narrow[i], 0);
  expect(cosine).toBeGreaterThan(0.99);
  expect(narrow).not.toEqual(exact);
  const refused = siglip2(...args, '--precision', 'float16');
  expect([refused.status, refused.stderr]).toEqual([2, expect.stringContaining('float16')]);
});

test('embed loads the towers that its inputs need: for texts no image preprocessor', () => {
  const damaged = join(folder, 'damaged');
  cpSync(model, damaged, { recursive: true });
  writeFileSync(join(damaged, 'preprocessor_config.json'), '{');
  const text = ['embed', '-m', damaged, '-t', 'dog'];
  expect(siglip2(...text).status).toBe(0);
  expect(siglip2(...text, '-o', join(folder, 'texts.npy')).status).toBe(0);
  const image = siglip2('embed', '-m', damaged, join(folder, 'red.png'));
  expect([image.status, image.stderr]).toEqual([1, expect.stringContaining('preprocessor_config')]);
});

test('embed takes records, names what failed, and says what is acceptable', () => {
  const lines = ['red.png', 'missing.png', 'green.png'].map((file) => JSON.stringify({ file }));
  const records = join(folder, 'records.jsonl');
  writeFileSync(records, lines.join('\n'));
  const args = ['embed', '-m', model, records, '--image-field', 'file', '--id-field', 'file'];
  const plain = siglip2(...args);
  expect(plain.status).toBe(1);
  expect(jsonLines(plain.stdout).map(({ id }) => id)).toEqual(['red.png', 'green.png']);
  expect(plain.stderr).toMatch(/missing\.png.*ERR_FILE[^]*1 of 3 that failed/);
  const output = join(folder, 'records.parquet');
  const accepted = siglip2(...args, '-o', output, '--max-failures', '1', '--json');
  expect(accepted.status).toBe(0);
  expect(JSON.parse(accepted.stdout)).toMatchObject({ rows: 2, failures: 1, outputs: [output] });
  expect(readFileSync(output).subarray(-4).toString()).toBe('PAR1');
  const refused = siglip2(...args, '-o', join(folder, 'r.npy'), '--max-failures', '0');
  expect(refused.status).toBe(1);
  expect(refused.stderr).toMatch(/at most 0 rows may fail, got 1/);
});

test('classify ranks the labels', () => {
  const args = ['-m', model, '-l', 'dog', 'cat', '--template', '{}', '--json'];
  const { status, stdout } = siglip2('classify', join(folder, 'red.png'), ...args);
  expect(status).toBe(0);
  const [{ labels }] = jsonLines(stdout);
  const ranked = labels as { label: string; logit: number; probability: number }[];
  expect(ranked.map(({ label }) => label).sort()).toEqual(['cat', 'dog']);
  expect(ranked[0].logit).toBeGreaterThanOrEqual(ranked[1].logit);
});

test('search by an image finds that image first', () => {
  const green = join(folder, 'green.png');
  const { status, stdout } = siglip2('search', folder, green, '-m', model, '--json');
  expect(status).toBe(0);
  expect(jsonLines(stdout)[0]).toMatchObject({ image: green });
});

test('info describes machine and model', () => {
  const { status, stdout } = siglip2('info', '-m', model, '--json');
  expect(status).toBe(0);
  const facts = JSON.parse(stdout) as { device: string };
  expect(facts.device).toMatch(/^(cpu|cuda:\d+)$/u);
  expect(facts).toMatchObject({ model: { embedding: 128 }, cuda: {} });
});

test.each([
  ['an unknown command', ['fly'], 2, /unknown command/],
  ['a missing option', ['embed', 'x.png'], 2, /--model/],
  [
    'a folder without a model',
    ['embed', '-m', '/nonexistent', '-t', 'x'],
    1,
    /no such folder|must be/,
  ],
  ['a number that is none', ['train', '--steps', 'many'], 1, /--steps must be a whole number/],
  [
    'a batch that is none',
    ['embed', '-m', 'x', '-t', 'x', '-b', 'many'],
    1,
    /--batch must be a whole number/,
  ],
  [
    'a shard without an output',
    ['embed', '-m', 'x', '-t', 'x', '--shard', '1/2'],
    1,
    /--shard must come with --output/,
  ],
  ['an unknown dtype', ['embed', '-m', 'x', '-t', 'x', '--dtype', 'int8'], 2, /float32, float16/],
  ['a merge of nothing', ['merge', '/nonexistent', '-o', 'x.npy'], 1, /without manifest\.json/],
  [
    'a summary among results',
    ['embed', '-m', 'x', '-t', 'x', '--json'],
    1,
    /--json must come with --output/,
  ],
  [
    'a count of zero',
    ['search', 'test', 'x', '-m', 'x', '-n', '0'],
    1,
    /--top must be a whole number from 1/,
  ],
])('%s ends with the right status and a clear message', (_, args, status, message) => {
  const outcome = siglip2(...args);
  expect(outcome.status).toBe(status);
  expect(outcome.stderr).toMatch(message);
  expect(outcome.stderr).not.toMatch(/\n\s+at /);
});

test('a damaged image is named and the others are not lost silently', () => {
  const bad = join(folder, 'bad.png');
  writeFileSync(bad, Buffer.from('89504e470d0a1a0a0000', 'hex'));
  const { status, stderr } = siglip2('embed', '-m', model, bad);
  rmSync(bad);
  expect(status).toBe(1);
  expect(stderr).toContain(`siglip2: ${bad}: `);
  expect(stderr).toMatch(/\(ERR_IMAGE\)/);
  expect(stderr).toMatch(/1 of 1 that failed/);
});

test('curate selects half of the rows by embeddings of two models', () => {
  const texts = Array.from({ length: 8 }, (_, i) => ({ id: `pair ${String(i)}`, i }));
  const corpus = join(folder, 'pairs.jsonl');
  writeFileSync(
    corpus,
    texts
      .map(({ id, i }) => {
        const image = join(folder, i % 2 === 0 ? 'red.png' : 'green.png');
        return `${JSON.stringify({ id, image, text: i % 2 === 0 ? 'apple' : 'leaf' })}\n`;
      })
      .join(''),
  );
  const embeddings = join(folder, 'pairs.safetensors');
  expect(
    siglip2('embed', '-m', model, '--what', 'both', '--image-root', '/', corpus, '-o', embeddings)
      .status,
  ).toBe(0);
  const output = join(folder, 'selected.jsonl');
  const { status, stderr } = siglip2(
    'curate',
    ...['--learner', embeddings, '--learner-logits', model],
    ...['--reference', embeddings, '--reference-logits', '10,-5'],
    ...['--super-batch', '4', '--chunks', '2', '-o', output],
  );
  expect(stderr).toMatch(/8\/8 rows .* 4 selected/);
  expect(status).toBe(0);
  const lines = jsonLines(readFileSync(output, 'utf8'));
  expect(lines.map(({ superBatch }) => superBatch)).toEqual([0, 0, 1, 1]);
  for (const { row, id, score } of lines) {
    expect(id).toBe(`pair ${String(row)}`);
    expect(Number.isFinite(score)).toBe(true);
  }
});

test('curate looks at the pairs themselves, copies what it selects and shows it', () => {
  const corpus = join(folder, 'fruit.jsonl');
  const record = (i: number): object => ({
    id: `pair ${String(i)}`,
    image: i % 2 === 0 ? 'red.png' : i === 7 ? 'gone.png' : 'green.png',
    text: i % 3 === 0 ? 'apple' : 'leaf',
  });
  writeFileSync(
    corpus,
    Array.from({ length: 9 }, (_, i) => `${JSON.stringify(record(i))}\n`).join(''),
  );
  const output = join(folder, 'chosen.jsonl');
  const copy = join(folder, 'chosen_pairs.jsonl');
  const report = join(folder, 'chosen.html');
  const args = [
    ...['curate', corpus, '--learner', model, '--reference', model],
    ...['--super-batch', '4', '--chunks', '2'],
  ];
  const { status, stderr } = siglip2(
    ...args,
    ...['-o', output, '--copy', copy, '--report', report],
  );
  expect(stderr).toMatch(/9\/9 rows .* 4 selected/);
  expect(stderr).toMatch(/4 of 8 rows selected; mean score 0.00, of those dropped 0.00/);
  expect(stderr).toMatch(/pair 7: .*gone.png.*ERR_FILE/);
  expect(stderr).toMatch(
    /passed over 1 of 9 rows, which could not be read; .*chosen.failures.jsonl says why/,
  );
  expect(status).toBe(0);
  const lines = jsonLines(readFileSync(output, 'utf8'));
  expect(lines.map(({ superBatch }) => superBatch)).toEqual([0, 0, 1, 1]);
  expect(jsonLines(readFileSync(copy, 'utf8'))).toEqual(
    lines.map(({ row }) => record(Number(row))),
  );
  const page = readFileSync(report, 'utf8');
  expect(page).not.toMatch(/<script|src="http|undefined|NaN/);
  expect(page).toMatch(/4 of 8 rows selected \(50.0 %\), in 2 super-batches/);
  expect(page.match(/<img src="data:image\/png/g)).toHaveLength(16);
  expect(jsonLines(siglip2(...args).stdout)).toEqual(lines);
  expect(siglip2(...args, '--report', report).stderr).toMatch(/--report must come with --output/);
  expect(siglip2(...args, '--learner-logits', model).stderr).toMatch(/it has its own/);
});

test('plan works out a step, as text and as JSON', () => {
  const args = ['plan', '-m', 'g-opt/16', '--resolution', '256', '--gpus', '256'];
  const { stdout } = siglip2(...args);
  expect(stdout).toMatch(/^model +g-opt\/16, 1871\.4 M parameters$/m);
  expect(stdout).toMatch(/^figures .*measured: .*assumed: /m);
  const json = JSON.parse(siglip2(...args, '--json').stdout) as Record<string, unknown>;
  expect(json).toMatchObject({ gpus: 256, batch: 32768, fits: true });
  expect(siglip2('plan', '-m', 'X/16').stderr).toMatch(/name must be <size>\/<patch>/);
});
