import { describeOp } from './describe_op';

describeOp('attention_pool');
