// Texts as callers give them, brought to the ids of the text tower.
import { types } from 'node:util';
import { SiglipError } from '../errors';
import type { ModelConfig } from '../model';
import type { Tokenizer } from '../text';
import { shown } from './options';

/** A text, or ids that are already padded to the model's length. */
export type EmbedText = string | { readonly inputIds: Int32Array };

/** Brings texts to ids for one model. */
export class TextInputs {
  constructor(
    private readonly config: ModelConfig,
    private readonly tokenizer: Tokenizer | undefined,
  ) {}

  /**
   * `config.text.length` ids of memory of their own.
   *
   * @param who - begins the message of an error: the call, and the text where there are several.
   * @throws ERR_TOKENIZER for a string when there is no tokenizer; ERR_ARGUMENT, ERR_SHAPE
   */
  prepare(who: string, text: EmbedText): Int32Array {
    const { length, vocabulary } = this.config.text;
    if (typeof text === 'string') {
      if (this.tokenizer === undefined) {
        throw new SiglipError(
          'ERR_TOKENIZER',
          `${who}: the model folder must hold tokenizer.json to embed strings, got a folder without one; pass { inputIds }`,
        );
      }
      return this.tokenizer.encode(text, length);
    }
    const inputIds = typeof text === 'object' && text !== null ? text.inputIds : undefined;
    if (!types.isInt32Array(inputIds)) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `${who}: text must be a string or { inputIds: Int32Array }, got ${shown(text)}`,
      );
    }
    if (inputIds.length !== length) {
      throw new SiglipError(
        'ERR_SHAPE',
        `${who}: inputIds must hold ${String(length)} ids, got ${String(inputIds.length)}`,
      );
    }
    // A copy: an id changed after this check would fail everything in its batch.
    const ids = inputIds.slice();
    const bad = ids.findIndex((id) => id < 0 || id >= vocabulary);
    if (bad >= 0) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `${who}: ids must be in [0, ${String(vocabulary)}), got ${String(ids[bad])} at ${String(bad)}`,
      );
    }
    return ids;
  }
}

/** Bytes of memory an input keeps alive while it waits. */
export function textBytes(text: EmbedText): number {
  if (typeof text === 'string') return 2 * text.length;
  const ids: unknown = typeof text === 'object' && text !== null ? text.inputIds : undefined;
  return ArrayBuffer.isView(ids) ? ids.byteLength : 0;
}
