import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { Tokenizer } from '../../lib/text';
import { loadTokenizer, saveTokenizer, BytePairTokenizer, TokenizerSubset } from '../../lib/text';
import { gemma } from './gemma';
import { parsed, smallTokenizerJson } from './small_tokenizer';

/** Names of emoji in some languages of CLDR. */
function names(languages: readonly string[]): string[] {
  const root = join(dirname(require.resolve('cldr-annotations-full/package.json')), 'annotations');
  return languages.flatMap((language) => {
    const content = JSON.parse(readFileSync(join(root, language, 'annotations.json'), 'utf8')) as {
      annotations: { annotations: Record<string, { default?: string[]; tts?: string[] }> };
    };
    return Object.values(content.annotations.annotations).flatMap(({ tts = [] }) => tts);
  });
}

const texts = names(['en', 'ja', 'ar', 'ta']).concat([
  'A photo of a CAT.\n\n<eos> Ω',
  '🫩 unknown to the vocabulary, in bytes',
]);
let full: BytePairTokenizer;
let subset: TokenizerSubset;
let folder: string;

beforeAll(() => {
  full = gemma();
  subset = TokenizerSubset.from(full, texts);
  folder = mkdtempSync(join(tmpdir(), 'siglip2-subset-'));
});

afterAll(() => {
  rmSync(folder, { recursive: true });
});

function expectSameIds(small: Tokenizer): void {
  const wrong = texts.filter((text) => {
    const ids = Array.from(small.ids(text), (id) => subset.originalIds[id]);
    return String(ids) !== String([...full.ids(text)]);
  });
  expect(wrong).toEqual([]);
}

describe('TokenizerSubset', () => {
  test('gives the old ids, renumbered, for every text', () => {
    expect(texts.length).toBeGreaterThan(5_000);
    expectSameIds(subset.tokenizer);
    expect(subset.tokenizer.vocabulary).toBeLessThan(20_000);
  });

  test('keeps <pad> <eos> <bos> <unk> and the order of ids', () => {
    const { originalIds, tokenizer } = subset;
    expect([...originalIds.slice(0, 4)]).toEqual([0, 1, 2, 3]);
    expect(originalIds.every((id, i) => i === 0 || id > originalIds[i - 1])).toBe(true);
    expect([tokenizer.padId, tokenizer.eosId]).toEqual([0, 1]);
    expect(originalIds).toHaveLength(tokenizer.vocabulary);
  });

  test('other texts fall into known pieces, and to <unk> where nothing is known', () => {
    const { tokenizer } = subset;
    const ids = tokenizer.ids('catcatcat');
    expect(tokenizer.decode(ids)).toBe('catcatcat');
    expect([...tokenizer.ids('\u2d30\u2d31')]).toEqual([3]);
  });

  test('is saved with a model and loaded again', async () => {
    await saveTokenizer(folder, subset.tokenizer);
    expect(readdirSync(folder).sort()).toEqual(['tokenizer.json', 'tokenizer_config.json']);
    expect(statSync(join(folder, 'tokenizer.json')).size).toBeLessThan(1_500_000);
    const loaded = await loadTokenizer(folder);
    if (loaded === undefined) throw new Error('the tokenizer must be found');
    expect(loaded.lowercase).toBe(true);
    expectSameIds(loaded);
    expect(loaded.encode(texts.slice(0, 100))).toEqual(
      subset.tokenizer.encode(texts.slice(0, 100)),
    );
  });

  test('follows the tokenizer it is made from in lower-casing', () => {
    const asWritten = gemma({ lowercase: false });
    const small = TokenizerSubset.from(asWritten, ['A Cat']).tokenizer;
    expect(small.decode(small.ids('A Cat'))).toBe('A Cat');
    expect(small.lowercase).toBe(false);
  });

  test('a vocabulary that begins otherwise is refused', () => {
    const json = smallTokenizerJson();
    const vocab = { '<eos>': 0, '<pad>': 1, '<unk>': 2 };
    const other = new BytePairTokenizer(
      parsed({ ...json, added_tokens: [], model: { ...json.model, vocab, merges: [] } }),
    );
    expect(() => TokenizerSubset.from(other, [])).toThrow('got <eos> <pad> <unk>');
  });
});
