export type { AddedToken } from './added_tokens';
export { parseSentencePiece } from './sentencepiece';
export { TokenizerSubset } from './subset';
export type { TokenizerDefinition, TokenizerOptions } from './tokenizer';
export { Tokenizer } from './tokenizer';
export { loadTokenizer, saveTokenizer } from './tokenizer_files';
export { formatTokenizer, parseTokenizer } from './tokenizer_json';
