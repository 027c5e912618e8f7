export * from './embed';
export type { SiglipErrorCode } from './errors';
export { SiglipError } from './errors';
