export type { AddedToken } from './added_tokens';
export type { TokenizerDefinition } from './byte_pair_tokenizer';
export { BytePairTokenizer } from './byte_pair_tokenizer';
export { parseSentencePiece } from './sentencepiece';
export { TokenizerSubset } from './subset';
export type { Tokenizer, TokenizerOptions } from './tokenizer';
export { UnigramTokenizer } from './unigram_tokenizer';
export type { SentencePieceModel } from './sentencepiece';
export { readSentencePiece } from './sentencepiece';
export { deferTokenizer, loadTokenizer, saveTokenizer } from './tokenizer_files';
export { formatTokenizer, parseTokenizer } from './tokenizer_json';
export type { Box } from './box_tokens';
export { boxIds, captionText, parseBox } from './box_tokens';
export type {
  CaptionBatch,
  CaptionDraw,
  CaptionExample,
  CaptionTargetOptions,
} from './caption_targets';
export { captionPrompt, captionQueries, captionTargets, groundingPrompt } from './caption_targets';
