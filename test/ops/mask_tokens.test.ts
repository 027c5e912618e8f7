import { describeOp } from './describe_op';

describeOp('mask_tokens');
