package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	k8syaml "k8s.io/apimachinery/pkg/util/yaml"

	"podseal.io/podseal/internal/controlplane"
)

// maxFile bounds one file, in bytes.
const maxFile = 16 << 20

// readObjects reads the objects in files of YAML or JSON, lists taken apart. "-" is
// the standard input. Objects without a namespace get the one that is given.
func readObjects(files []string, stdin io.Reader, namespace string) ([]fileObject, error) {
	var out []fileObject
	for _, file := range files {
		text, err := readFile(file, stdin)
		if err != nil {
			return nil, codedError{err, exitNoInput}
		}
		objects, err := decodeObjects(bytes.NewReader(text))
		if err != nil {
			return nil, codedError{fmt.Errorf("read %s: %w", file, err), exitBadInput}
		}
		for _, obj := range objects {
			if obj.GetNamespace() == "" {
				obj.SetNamespace(namespace)
			}
			out = append(out, fileObject{file, obj})
		}
	}
	return out, nil
}

// readFile reads at most maxFile bytes.
func readFile(file string, stdin io.Reader) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(io.LimitReader(stdin, maxFile))
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	return text, errors.Join(err, f.Close())
}

// fileObject is an object and where it stands.
type fileObject struct {
	file string
	*unstructured.Unstructured
}

func decodeObjects(in io.Reader) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	docs := k8syaml.NewYAMLReader(bufio.NewReader(in))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		obj := &unstructured.Unstructured{}
		if err := k8syaml.NewYAMLOrJSONDecoder(bytes.NewReader(doc), len(doc)+1).Decode(&obj.Object); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		switch {
		case len(obj.Object) == 0: // only comments
		case obj.GetKind() == "" || obj.GetAPIVersion() == "":
			return nil, fmt.Errorf("document %d: it has no kind and apiVersion", n)
		case obj.IsList():
			if err := obj.EachListItem(func(item runtime.Object) error {
				if u, ok := item.(*unstructured.Unstructured); ok {
					out = append(out, u)
				}
				return nil
			}); err != nil {
				return nil, fmt.Errorf("document %d: %w", n, err)
			}
		default:
			out = append(out, obj)
		}
	}
}

// readPolicies reads what `can` and `authz check` are to take as applied.
func readPolicies(files []string, s streams, namespace string) ([]*unstructured.Unstructured, error) {
	objects, err := readObjects(files, s.in, namespace)
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, obj := range objects {
		if !controlplane.Honoured(obj.GroupVersionKind()) {
			fmt.Fprintf(s.err, "note: %s: %s %s/%s is left out: only policies can be tried\n", obj.file, obj.GetKind(), obj.GetNamespace(), obj.GetName())
			continue
		}
		out = append(out, obj.Unstructured)
	}
	if len(files) > 0 && len(out) == 0 {
		return nil, codedError{errors.New("the files have no policy"), exitBadInput}
	}
	return out, nil
}
