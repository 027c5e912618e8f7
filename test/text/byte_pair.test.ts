import { Philox4x32 } from '../../lib/array/random';
import type { BytePairModel } from '../../lib/text/byte_pair';
import { BytePairEncoder } from '../../lib/text/byte_pair';
import { MergeTable } from '../../lib/text/merge_table';
import { PieceTable } from '../../lib/text/pieces';

interface RandomModel extends BytePairModel {
  readonly pieces: readonly string[];
}

/** Letters, and pieces made of two earlier pieces in random order of priority. */
function randomModel(random: Philox4x32, letters: string, size: number): RandomModel {
  const pieces = ['<unk>', ...Array.from(letters)];
  while (pieces.length < size) {
    const [a, b] = [0, 0].map(() => pieces[1 + random.integer(pieces.length - 1)]);
    if (!pieces.includes(a + b)) pieces.push(a + b);
  }
  const ids = new Map(pieces.map((piece, id) => [piece, id]));
  const merges = pieces.slice(1).flatMap((piece) =>
    [...Array(piece.length).keys()].slice(1).flatMap((at) => {
      const [l, r] = [ids.get(piece.slice(0, at)), ids.get(piece.slice(at))];
      return l === undefined || r === undefined ? [] : [[l, r, ids.get(piece) ?? 0]];
    }),
  );
  const column = (i: number): Int32Array => Int32Array.from(merges, (merge) => merge[i]);
  const priority = Int32Array.from(merges, () => random.integer(merges.length));
  return {
    pieces,
    merges: new MergeTable(column(0), column(1), column(2), priority),
    characters: PieceTable.from(pieces).characters(),
    bytes: new Int32Array(256).fill(-1),
    unknown: 0,
    fuseUnknown: true,
  };
}

/** The definition, step by step: look at every pair, merge the best, start again. */
function naive({ merges, characters }: BytePairModel, text: string): number[] {
  const ids = Array.from(text, (c) => characters.get(c.codePointAt(0) ?? 0) ?? 0);
  for (;;) {
    let best = -1;
    let place = -1;
    for (let i = 0; i + 1 < ids.length; i++) {
      const merge = merges.find(ids[i], ids[i + 1]);
      if (merge >= 0 && (best < 0 || merges.priority[merge] < merges.priority[best])) {
        best = merge;
        place = i;
      }
    }
    if (best < 0) return ids;
    ids.splice(place, 2, merges.result[best]);
  }
}

test('the heap gives what the definition gives', () => {
  const random = new Philox4x32(11, 'byte pairs');
  for (let round = 0; round < 40; round++) {
    const letters = 'abcd'.slice(0, 2 + random.integer(3));
    const model = randomModel(random, letters, 8 + random.integer(40));
    const encoder = new BytePairEncoder(model);
    for (let i = 0; i < 25; i++) {
      const text = Array.from(
        { length: random.integer(60) },
        () => letters[random.integer(letters.length)],
      ).join('');
      expect([...encoder.encode(text)]).toEqual(naive(model, text));
    }
  }
});

test('visited ids are all that ever occur', () => {
  const model = randomModel(new Philox4x32(2, 'visited'), 'ab', 12);
  const visited: number[] = [];
  const ids = new BytePairEncoder(model).encode('abbabaabab', (id) => visited.push(id));
  ids.forEach((id) => {
    expect(visited).toContain(id);
  });
  // Ten symbols to begin with, and one more for each merge.
  expect(visited).toHaveLength(10 + 10 - ids.length);
});

describe('what is no piece', () => {
  const model = randomModel(new Philox4x32(5, 'unknown'), 'ab', 4);

  test('runs of unknown code points are one <unk>, or one each', () => {
    expect([...new BytePairEncoder(model).encode('z🦊b字')]).toEqual([0, 2, 0]);
    const apart = { ...model, fuseUnknown: false };
    expect([...new BytePairEncoder(apart).encode('z🦊b')]).toEqual([0, 0, 2]);
  });

  test('bytes stand in where all of them are pieces', () => {
    const bytes = new Int32Array(256).fill(-1);
    bytes[0x7a] = 100;
    bytes[0xc3] = 101;
    const spelled = { ...model, bytes };
    expect([...new BytePairEncoder(spelled).encode('zéa')]).toEqual([100, 0, 1]);
  });
});
