// docs/guides/training-data.md: its mixture is one, its program and its commands run.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { checkMixture } from '../../lib/data/mixture';
import { RegionDetections } from '../../lib/data/region_detections';
import { BytePairTokenizer, loadTokenizer, saveTokenizer, TokenizerSubset } from '../../lib/text';
import { folderForAll, put } from '../corpus/corpus_files';
import { putCorpus } from './pair_corpora';

const root = join(__dirname, '..', '..');
const folder = folderForAll();
const at = (...names: string[]): string => join(folder(), ...names);
const typescript = join(root, 'test', 'typescript.js');

const guide = readFileSync(join(root, 'docs', 'guides', 'training-data.md'), 'utf8');
const blocks = (language: string): string[] =>
  [...guide.matchAll(new RegExp(`^\`\`\`${language}\\n([^]*?)^\`\`\`$`, 'gmu'))].map((m) => m[1]);

beforeAll(async () => {
  await putCorpus(folder(), 'jsonl', 1, 8);
  put(at('pairs.jsonl'), readFileSync(at('0.jsonl')));
  put(at('names.txt'), 'cat\n');
  put(at('detections.jsonl'), JSON.stringify(JSON.parse(blocks('json')[1])));
  put(
    at('mixture.json'),
    JSON.stringify({
      corpora: { pairs: { inputs: ['pairs.jsonl'] } },
      streams: [{ name: 'all', weight: 1, corpus: 'pairs' }],
    }),
  );
  const gemma = await loadTokenizer(
    join(root, 'node_modules', '@lenml', 'tokenizer-gemma', 'models'),
  );
  if (!(gemma instanceof BytePairTokenizer))
    throw new Error('the Gemma tokenizer must be installed');
  await saveTokenizer(at('model'), TokenizerSubset.from(gemma, ['text']).tokenizer);
});

test('the mixture and the detection are what is read', () => {
  const [mixture, detection] = blocks('json').map((block) => JSON.parse(block) as unknown);
  expect(checkMixture(mixture).streams.map(({ weight }) => weight)).toEqual([0.8, 0.1, 0.1]);
  const detections = new RegionDetections();
  detections.add(detection);
  expect(detections.regions('0001')).toHaveLength(1);
});

test('the program runs', () => {
  const [code] = blocks('ts');
  const end = code.lastIndexOf('import ');
  const body = code.indexOf('\n', end) + 1;
  const main = `async function main() {\n${code.slice(body)}
    console.log(images.length, tokens.length, texts.length, regions.length, JSON.stringify(state).length < 300);
  }\nmain();\n`;
  const path = put(at('program.ts'), code.slice(0, body) + main);
  const resolve = join(root, 'test', 'docs', 'resolve_package.js');
  const { stdout, stderr } = spawnSync(process.execPath, ['-r', typescript, '-r', resolve, path], {
    cwd: folder(),
    encoding: 'utf8',
  });
  expect([stdout, stderr]).toEqual([
    `${String(256 ** 3 * 3)} ${String(256 * 64)} 256 256 true\n`,
    '',
  ]);
});

test('the commands run', () => {
  const commands = blocks('sh').join('');
  expect(commands.match(/^siglip2 regions/gmu)).toHaveLength(2);
  const main = `'${process.execPath}' -r '${typescript}' '${root}/lib/cli/main.ts'`;
  const script = `set -euo pipefail\nsiglip2() { ${main} "$@"; }\n${commands}`;
  const { status, stderr } = spawnSync('bash', ['-c', script], { cwd: folder(), encoding: 'utf8' });
  expect([status, stderr]).toEqual([0, expect.stringMatching(/8 rows in with-regions\.jsonl\n$/)]);
  expect(readFileSync(at('queries.jsonl.labels.txt'), 'utf8')).toBe('cat\n');
});
