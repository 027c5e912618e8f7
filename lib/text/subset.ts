// A tokenizer for few texts: the pieces that occur while those texts are encoded, those merged away
// on the way included, and the merges between them, in their old order.
//
// On those texts it gives the old ids, renumbered, exactly. At every step the old tokenizer takes the
// first of all possible merges; the merge it takes is kept, since its result has occurred, and the
// merges the new one can choose from are a part of those the old one could. So the new one takes the
// same, and by induction all steps are the same. Other texts fall into smaller known pieces, down to
// characters, and to <unk> where even a character is new.
import { SiglipError } from '../errors';
import { MergeTable } from './merge_table';
import type { TokenizerDefinition } from './byte_pair_tokenizer';
import { BytePairTokenizer } from './byte_pair_tokenizer';
import { PieceTable } from './pieces';

const KEPT = ['<pad>', '<eos>', '<bos>', '<unk>'];

/** A tokenizer restricted to some texts. */
export class TokenizerSubset {
  private constructor(
    /** Ids from 0, in the order of the old ids; `<pad>` 0, `<eos>` 1, `<bos>` 2, `<unk>` 3. */
    readonly tokenizer: BytePairTokenizer,
    /** The old id of every new one: which rows of a trained table of embeddings to keep. */
    readonly originalIds: Int32Array,
  ) {}

  /**
   * The smallest vocabulary that encodes `texts` as `tokenizer` does. Save it with `saveTokenizer`: a
   * small model then brings its own tokenizer of a few kilobytes.
   *
   * @param texts - all texts training and evaluation will use, as they will be passed to `encode`
   * @throws SiglipError ERR_TOKENIZER when the tokenizer's first ids are not `<pad> <eos> <bos> <unk>`
   * @example
   * const { tokenizer: small } = TokenizerSubset.from(tokenizer, captions);
   * small.vocabulary;   // 5,321 instead of 256,000
   */
  static from(tokenizer: BytePairTokenizer, texts: Iterable<string>): TokenizerSubset {
    const { definition, lowercase } = tokenizer;
    const { pieces } = definition;
    const first = KEPT.slice(0, pieces.size).map((_, id) => pieces.text(id));
    if (String(first) !== String(KEPT)) {
      throw new SiglipError(
        'ERR_TOKENIZER',
        `TokenizerSubset.from: ids 0 to 3 must be ${KEPT.join(' ')}, got ${first.join(' ')}`,
      );
    }
    const used = tokenizer.visit(texts);
    KEPT.forEach((_, id) => used.add(id));
    const originalIds = Int32Array.from(used).sort();
    const renumbered = new Map(Array.from(originalIds, (old, id) => [old, id]));
    return new TokenizerSubset(
      new BytePairTokenizer(restrict(definition, originalIds, renumbered), { lowercase }),
      originalIds,
    );
  }
}

function restrict(
  definition: TokenizerDefinition,
  originalIds: Int32Array,
  renumbered: ReadonlyMap<number, number>,
): TokenizerDefinition {
  const kept = (old: number): number => renumbered.get(old) ?? -1;
  return {
    pieces: PieceTable.from(Array.from(originalIds, (old) => definition.pieces.text(old))),
    added: definition.added.flatMap((token) =>
      renumbered.has(token.id) ? { ...token, id: kept(token.id) } : [],
    ),
    merges: restrictMerges(definition.merges, kept),
    characters: new Map(
      [...definition.characters].flatMap(([point, old]) =>
        renumbered.has(old) ? [[point, kept(old)]] : [],
      ),
    ),
    bytes: definition.bytes.map((old) => kept(old)),
    unknown: kept(definition.unknown),
    fuseUnknown: definition.fuseUnknown,
    lowercase: definition.lowercase,
  };
}

function restrictMerges(
  { size, left, right, result, priority }: MergeTable,
  kept: (old: number) => number,
): MergeTable {
  const chosen: number[] = [];
  for (let k = 0; k < size; k++) {
    if (kept(left[k]) >= 0 && kept(right[k]) >= 0 && kept(result[k]) >= 0) chosen.push(k);
  }
  const take = (ids: Int32Array): Int32Array => Int32Array.from(chosen, (k) => kept(ids[k]));
  // Priorities keep their values: only their order counts.
  const order = Int32Array.from(chosen, (k) => priority[k]);
  return new MergeTable(take(left), take(right), take(result), order);
}
