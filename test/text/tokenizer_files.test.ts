import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BytePairTokenizer, deferTokenizer, loadTokenizer, saveTokenizer } from '../../lib/text';
import { BYTE_PAIR_SPECS, piece } from './sentencepiece_bytes';
import { smallTokenizerJson } from './small_tokenizer';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-tokenizer-'));
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

const put = (name: string, content: string | Buffer): void => {
  writeFileSync(join(folder, name), content);
};

test('a folder without a tokenizer has none', async () => {
  expect(await loadTokenizer(folder)).toBeUndefined();
  expect(await loadTokenizer(join(folder, 'missing'))).toBeUndefined();
});

test('tokenizer.json, with options', async () => {
  put('tokenizer.json', JSON.stringify(smallTokenizerJson()));
  const lower = await loadTokenizer(folder);
  expect([...(lower?.encode('CAT', 3) ?? [])]).toEqual([10, 1, 0]);
  const asWritten = await loadTokenizer(folder, { lowercase: false });
  expect([...(asWritten?.encode('CAT', 3) ?? [])]).toEqual([3, 1, 0]);
});

test('saved and loaded again', async () => {
  put('tokenizer.json', JSON.stringify(smallTokenizerJson()));
  const original = await loadTokenizer(folder);
  if (!(original instanceof BytePairTokenizer)) throw new Error('it must be found');
  const other = join(folder, 'new', 'place');
  await saveTokenizer(other, original);
  const copy = await loadTokenizer(other);
  expect(copy?.encode(['A CAT', 'tac\n\n'])).toEqual(original.encode(['A CAT', 'tac\n\n']));
});

test('tokenizer.model takes its added tokens from tokenizer_config.json', async () => {
  const pieces = [piece('<pad>', 0, 3), piece('<eos>', 0, 3), piece('<unk>', 0, 2), piece('a', 0)];
  put('tokenizer.model', Buffer.concat([...pieces, BYTE_PAIR_SPECS]));
  expect([...((await loadTokenizer(folder))?.ids('a<eos>') ?? [])]).toEqual([3, 2]);
  const decoder = { 1: { content: '<eos>', special: true } };
  put('tokenizer_config.json', JSON.stringify({ added_tokens_decoder: decoder }));
  expect([...((await loadTokenizer(folder))?.ids('a<eos>') ?? [])]).toEqual([3, 1]);
});

test.each([
  ['not JSON', '{'],
  ['another kind of tokenizer', '{"model": {"type": "WordPiece"}}'],
])('refuses %s and names the file', async (_, content) => {
  put('tokenizer.json', content);
  await expect(loadTokenizer(folder)).rejects.toMatchObject({ code: 'ERR_TOKENIZER' });
  await expect(loadTokenizer(folder)).rejects.toThrow(join(folder, 'tokenizer.json'));
});

describe('deferTokenizer', () => {
  test('reads the file with the first text', async () => {
    expect(await deferTokenizer(folder)).toBeUndefined();
    put('tokenizer.json', '{');
    const tokenizer = await deferTokenizer(folder);
    const path = join(folder, 'tokenizer.json');
    expect(() => tokenizer?.encode('CAT', 3)).toThrow(`${path}: content must be JSON`);
    put('tokenizer.json', JSON.stringify(smallTokenizerJson()));
    expect([...(tokenizer?.encode('CAT', 3) ?? [])]).toEqual([10, 1, 0]);
    rmSync(path);
    expect([...(tokenizer?.ids('CAT') ?? [])]).toEqual([10]);
    expect(tokenizer?.decode([10])).toBe('cat');
    const { vocabulary, padId, eosId, lowercase } = tokenizer ?? {};
    expect([vocabulary, padId, eosId, lowercase]).toEqual([12, 0, 1, true]);
    await expect(deferTokenizer(folder)).resolves.toBeUndefined();
  });

  test('says so when the file has gone', async () => {
    put('tokenizer.json', JSON.stringify(smallTokenizerJson()));
    const tokenizer = await deferTokenizer(folder);
    rmSync(join(folder, 'tokenizer.json'));
    expect(() => tokenizer?.vocabulary).toThrow('tokenizer.json: file must be readable');
  });

  test('takes the added tokens of tokenizer.model', async () => {
    const pieces = [piece('<pad>', 0, 3), piece('<eos>', 0, 3), piece('<unk>', 0, 2)];
    put('tokenizer.model', Buffer.concat([...pieces, BYTE_PAIR_SPECS]));
    const decoder = { 1: { content: '<eos>', special: true } };
    put('tokenizer_config.json', JSON.stringify({ added_tokens_decoder: decoder }));
    expect([...((await deferTokenizer(folder))?.ids('a<eos>') ?? [])]).toEqual([2, 1]);
  });
});

describe('which tokenizer it is say the files', () => {
  const golden = join(__dirname, '..', 'golden', 'tokenizer');
  const bytePairs = JSON.stringify(smallTokenizerJson());

  test.each([loadTokenizer, deferTokenizer])('spiece.model comes first', async (load) => {
    put('tokenizer.json', bytePairs);
    put('tokenizer_config.json', '{"tokenizer_class": "GemmaTokenizer"}');
    put('spiece.model', readFileSync(join(golden, 'unigram_rules.model')));
    const tokenizer = await load(folder);
    expect([tokenizer?.vocabulary, tokenizer?.padId]).toEqual([1600, 1]);
  });

  test('a byte-pair model under that name is refused', async () => {
    const pieces = [piece('</s>', 0, 3), piece('<unk>', 0, 2), BYTE_PAIR_SPECS];
    put('spiece.model', Buffer.concat(pieces));
    await expect(loadTokenizer(folder)).rejects.toThrow('model_type must be unigram');
  });

  test('tokenizer.json comes before tokenizer.model', async () => {
    put('tokenizer.json', bytePairs);
    put('tokenizer.model', 'not looked at');
    expect((await loadTokenizer(folder))?.vocabulary).toBe(12);
  });
});
