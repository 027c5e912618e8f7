// A SentencePiece model file, piece by piece.

/** A field of bytes. */
export function field(number: number, content: Uint8Array): Buffer {
  const length =
    content.length < 128
      ? [content.length]
      : [(content.length & 127) | 128, Math.floor(content.length / 128)];
  return Buffer.concat([Buffer.of(number * 8 + 2, ...length), content]);
}

/** A field of a small integer. */
export function integer(number: number, value: number): Buffer {
  const tag = number * 8;
  return tag < 128 ? Buffer.of(tag, value) : Buffer.of((tag & 127) | 128, tag >> 7, value);
}

export function piece(text: string, score: number, type?: number): Buffer {
  const value = Buffer.alloc(5);
  value[0] = 2 * 8 + 5;
  value.writeFloatLE(score, 1);
  const kind = type === undefined ? [] : [integer(3, type)];
  return field(1, Buffer.concat([field(1, Buffer.from(text)), value, ...kind]));
}

/** The trainer's and the normaliser's part of a byte-pair model that takes texts as they are. */
export const BYTE_PAIR_SPECS = Buffer.concat([
  field(2, integer(3, 2)),
  field(3, Buffer.concat([integer(3, 0), integer(4, 0)])),
]);
