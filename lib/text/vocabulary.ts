// What follows from the pieces of a vocabulary alone.

/** Ids of the pieces that are one code point. */
export function characterIds(vocabulary: Iterable<readonly [string, number]>): Map<number, number> {
  const characters = new Map<number, number>();
  for (const [piece, id] of vocabulary) {
    const point = piece.codePointAt(0);
    if (point !== undefined && piece.length === (point > 0xffff ? 2 : 1)) characters.set(point, id);
  }
  return characters;
}

/** Ids of `<0x00>`…`<0xFF>`, −1 where there is none. */
export function byteIds(vocabulary: ReadonlyMap<string, number>): Int32Array {
  return Int32Array.from({ length: 256 }, (_, byte) => {
    const hex = byte.toString(16).toUpperCase().padStart(2, '0');
    return vocabulary.get(`<0x${hex}>`) ?? -1;
  });
}
