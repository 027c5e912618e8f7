import { describeOp } from './describe_op';

describeOp('joined_attention');
