import { Philox4x32 } from '../../lib/array/random';
import type { TokenizerDefinition } from '../../lib/text';
import { BytePairTokenizer } from '../../lib/text';
import { MergeTable } from '../../lib/text/merge_table';
import { PieceTable } from '../../lib/text/pieces';

const SPECIAL = ['<pad>', '<eos>', '<unk>'];

/** Pieces, and merges of two of them in an order of priority. */
function definition(
  pieces: readonly string[],
  merges: readonly (readonly [string, string])[],
  fuseUnknown = true,
): TokenizerDefinition {
  const table = PieceTable.from([...SPECIAL, ...pieces]);
  const column = (of: (merge: readonly [string, string]) => string): Int32Array =>
    Int32Array.from(merges, (merge) => table.find(of(merge)));
  return {
    pieces: table,
    added: [],
    merges: new MergeTable(
      column(([left]) => left),
      column(([, right]) => right),
      column(([left, right]) => left + right),
      Int32Array.from(merges.keys()),
    ),
    characters: table.characters(),
    bytes: new Int32Array(256).fill(-1),
    unknown: 2,
    fuseUnknown,
    lowercase: false,
  };
}

function randomDefinition(random: Philox4x32, letters: string, count: number): TokenizerDefinition {
  const pieces = new Set(letters);
  const merges: [string, string][] = [];
  const any = (): string => [...pieces][random.integer(pieces.size)];
  while (merges.length < count) {
    const [left, right] = [any(), any()];
    if ((left + right).length > 6) continue;
    pieces.add(left + right);
    const at = random.integer(merges.length + 1);
    const known = merges.some(([a, b]) => a === left && b === right);
    if (!known) merges.splice(at, 0, [left, right]);
  }
  return definition([...pieces], merges);
}

function expectSameBeginning(tokenizer: BytePairTokenizer, text: string, limit: number): void {
  expect(tokenizer.ids(text, limit)).toEqual(tokenizer.ids(text).subarray(0, limit));
}

test('the first ids of long texts in random vocabularies', () => {
  const random = new Philox4x32(9, 'random vocabularies');
  for (let round = 0; round < 60; round++) {
    const letters = 'abcde'.slice(0, 2 + random.integer(3));
    const tokenizer = new BytePairTokenizer(randomDefinition(random, letters, 4 + round / 3));
    // The last letter of the text is no piece.
    const text = Array.from({ length: 5000 }, () => `${letters}?`[random.integer(letters.length)]);
    for (const limit of [0, 1, 2, 7]) expectSameBeginning(tokenizer, text.join(''), limit);
  }
});

// Every pair of neighbours merges, the later ones first: which ones do depends on where the text
// ends, thousands of letters on.
test('a chain that reaches from the end of a text to its beginning', () => {
  const letters = Array.from({ length: 9001 }, (_, i) => String.fromCodePoint(0x4e00 + i));
  const pairs = letters.slice(1).map((letter, i): [string, string] => [letters[i], letter]);
  const pieces = [...letters, ...pairs.map((pair) => pair.join(''))];
  const tokenizer = new BytePairTokenizer(definition(pieces, pairs.reverse()));
  for (const length of [8999, 9000, 9001]) {
    const text = letters.slice(0, length).join('');
    expectSameBeginning(tokenizer, text, 3);
    expect(tokenizer.ids(text, 1)[0]).toBe(
      length % 2 === 0 ? tokenizer.definition.pieces.find(letters.slice(0, 2).join('')) : 3,
    );
  }
});

test('a run of unknown characters is one id, also where a text is cut', () => {
  const vocabulary = definition(['a', 'b', 'ab'], [['a', 'b']]);
  const tokenizer = new BytePairTokenizer(vocabulary);
  expect([...tokenizer.ids('??ab字 ?ab?')]).toEqual([2, 5, 2, 5, 2]);
  expectSameBeginning(tokenizer, `${'?'.repeat(5000)}ab?`, 3);
  expectSameBeginning(tokenizer, `${'?ab'.repeat(5000)}ab?`, 5);
  expectSameBeginning(tokenizer, `ab?${'a'.repeat(9000)}`, 5);
  const apart = new BytePairTokenizer(definition(['a', 'b', 'ab'], [['a', 'b']], false));
  expect([...apart.ids('??ab字')]).toEqual([2, 2, 5, 2]);
});

test('a vocabulary that merges <unk> is never cut', () => {
  const strange = definition(['a', '<unk>a'], [['<unk>', 'a']]);
  const tokenizer = new BytePairTokenizer(strange);
  expect([...tokenizer.ids('?a?a')]).toEqual([4, 4]);
  expectSameBeginning(tokenizer, '?a'.repeat(4000), 3);
});

test('an added token that begins where a look ends', () => {
  const vocabulary = definition(['a', '|', '||'], [['|', '|']]);
  const added = ['|', '||||||||'].map((content, i) => ({ id: i, content, special: false }));
  const tokenizer = new BytePairTokenizer({ ...vocabulary, added });
  for (let before = 4080; before < 4100; before++) {
    const text = `${'|'.repeat(before)}a`;
    expectSameBeginning(tokenizer, text, 600);
  }
});

test('pieces that are alike are refused', () => {
  expect(() => PieceTable.from(['a', 'b', 'a'], 'file')).toThrow(
    'file: pieces must be distinct, got a as id 0 and as id 2',
  );
});
